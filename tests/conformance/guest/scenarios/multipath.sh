#: files on a multipath disk while its paths log out and in: no error, nothing lost
#: targets lio lunar
#: limit 400
# What blktests' srp/002 to 004 and 011 look at.
. /guest/initiator.sh

# path EXT: logs in, and makes $path the disk.
path() {
	login "initiator_ext=000000000000000$1"
	disk
	path=$(cat "/sys/block/${disk#/dev/}/dev")
}

target_start
path 1
first=$host first_path=$path
path 2
second=$host second_path=$path
table "$first_path" "$second_path"
many_disk=$disk
disk=/dev/mapper/many
file_system
load 30
for round in 1 2; do
	disk=$many_disk
	table "$second_path"
	logout "$first"
	path 1
	first=$host first_path=$path
	table "$first_path"
	logout "$second"
	path 2
	second=$host second_path=$path many_disk=$disk
	table "$first_path" "$second_path"
done
still_loaded
load_is_over
disk=/dev/mapper/many
file_system_is_clean
check "the multipath device goes" dmsetup --noudevsync remove many
logout "$first"
logout "$second"
target_stop
