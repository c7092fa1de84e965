#: a disc mounts and reads as it was made; other discs, ejecting and preventing that are seen
#: targets lunar
#: limit 240

# A disc of ISO 9660 with $2 MiB of anything, and what it has.
disc() {
	rm -rf /tmp/tree && mkdir -p /tmp/tree/folder
	head -c $(($2 << 20)) /dev/urandom >/tmp/tree/folder/content
	genisoimage -quiet -V "$3" -o "$1" /tmp/tree || fail "no disc could be made"
	sum=$(md5sum </tmp/tree/folder/content)
}

. /guest/initiator.sh
modprobe -a sr_mod isofs || fail "sr_mod and isofs do not load"
target_start
disc $image/disc3 5 FIRST
first_sum=$sum
disc /tmp/second 2 SECOND
second_sum=$sum
target_add_cd 3
login

has_drive() {
	[ -n "$(disk_of "$host" 3)" ]
}
wait_for 30 "LUN 3 is a CD drive" has_drive
drive=/dev/$(disk_of "$host" 3)
generic=/dev/$(generic_of "$host" 3)

# Polls as the kernel does for a change of the medium, and looks at what it found.
blocks_are() {
	[ "$(cat "/sys/block/${drive#/dev/}/size")" = $(($1 * 4)) ]
}

# same_content SUM: what is mounted has the file.
same_content() {
	[ "$(md5sum </mnt/folder/content)" = "$1" ]
}

no_disc_mounts() {
	! mount -t iso9660 -r "$drive" /mnt 2>/dev/null
}

check "INQUIRY has type 5" sh -c "sg_inq $generic | grep -q 'PDT=5'"
check "the disc mounts" mount -t iso9660 -r "$drive" /mnt
check "its file has the content that it was made with" same_content "$first_sum"
check_not "a mounted disc cannot be exchanged" target_medium 3 /tmp/second
check "what is mounted is still there" same_content "$first_sum"
check "unmount" umount /mnt

check "another disc is put in" target_medium 3 /tmp/second
check "the other disc mounts" mount -t iso9660 -r "$drive" /mnt
check "and has its own content" same_content "$second_sum"
check "the kernel has its size" blocks_are $(($(stat -c %s /tmp/second) / 2048))
check "unmount" umount /mnt

# 28/00 for a nexus that has not looked since.
check "the first disc comes back" target_medium 3 $image/disc3
check "there is a unit attention" sh -c "sg_turs -v $generic 2>&1 | grep -qi 'medium may have changed'"

check "the disc is taken out" target_medium 3
check_not "there is no disc" sg_turs "$generic"
check "nothing mounts" no_disc_mounts
check "the first disc is put in again" target_medium 3 $image/disc3
check "it mounts" mount -t iso9660 -r "$drive" /mnt
check "with its content" same_content "$first_sum"
check "unmount" umount /mnt

check "an initiator prevents the removal" sg_prevent --prevent=1 "$generic"
check_not "it is not ejected then" sg_start --eject "$generic"
check "an initiator allows the removal" sg_prevent --allow "$generic"
check "an initiator ejects the disc" sg_start --eject "$generic"
check_not "there is no disc" sg_turs "$generic"
check "an initiator loads it" sg_start --load "$generic"
check "it mounts" mount -t iso9660 -r "$drive" /mnt
check "with its content" same_content "$first_sum"
check "unmount" umount /mnt
check_not "the kernel saw no I/O error" kernel_says 'I/O error|isofs_fill_super'
logout
target_stop
