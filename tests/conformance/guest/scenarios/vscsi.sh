#: Linux's ibmvscsi logs in and reads and writes through resets, its own reload, and a server that is killed
#: partition
#: limit 300
. /guest/partition.sh

client_loaded
disk
check "the disk is Lunar's" inquiry_says "$generic" 'LUNAR *null'
dmesg | grep -i vscsi
