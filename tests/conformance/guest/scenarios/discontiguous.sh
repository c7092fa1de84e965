#: buffers in many pieces with gaps between them, registered, with 255 scatter entries
#: targets lio lunar
#: limit 180
# What blktests' srp/013 looks at.
. /guest/initiator.sh

target_start
login cmd_sg_entries=255
disk
for size in 512 1024 4096; do
	check "pieces of $size bytes" discontiguous-io "$disk" $size 120
done
verified "in pages" --filename="$disk" --rw=randwrite --bs=512k --size=8m --iodepth=4
logout
target_stop
