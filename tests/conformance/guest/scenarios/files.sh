#: login with Linux's defaults; mkfs, mount, copy, fio over block sizes, unmount, fsck; logout
#: targets lio lunar
#: limit 300
. /guest/initiator.sh

target_start
login
disk
file_system
check "copy" cp -a /usr/bin /mnt/bin
verified "of 512 bytes" --filename=/mnt/512 --rw=randwrite --bs=512 --size=512k --iodepth=8
verified "of 4 KiB" --filename=/mnt/4k --rw=randwrite --bs=4k --size=2m --iodepth=8
verified "of 64 KiB" --filename=/mnt/64k --rw=randwrite --bs=64k --size=8m --iodepth=8
verified "of 1 MiB" --filename=/mnt/1m --rw=write --bs=1m --size=16m --iodepth=4
file_system_is_clean
logout

login
disk
check "mount again" mount -t ext4 -o ro "$disk" /mnt
check "the copy is what was copied" diff -r /usr/bin /mnt/bin
check "unmount" umount /mnt
logout
target_stop
