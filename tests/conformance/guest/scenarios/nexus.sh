#: a second nexus of the same initiator, by initiator_ext: both see the disk, each has its own fate
#: targets lio lunar
#: limit 180
. /guest/initiator.sh

target_start
login
first=$host
disk "$first"
first_disk=$disk
login initiator_ext=0000000000000001
second=$host
disk "$second"
check_not "they are two disks" [ "$first_disk" = "$disk" ]

verified "through the second" --filename="$disk" --rw=randwrite --bs=16k --size=4m --iodepth=8
check "what the second wrote" dd if="$disk" of=/run/second bs=1M count=4 iflag=direct
check "what the first reads" dd if="$first_disk" of=/run/first bs=1M count=4 iflag=direct
check "is the same" cmp /run/first /run/second
check "reset of the second" sg_reset -d "$generic"
check "the first still reads" dd if="$first_disk" of=/dev/null bs=1M count=4 iflag=direct
logout "$second"
check "without the second, the first still reads" dd if="$first_disk" of=/dev/null bs=1M count=4 iflag=direct
logout "$first"
target_stop
