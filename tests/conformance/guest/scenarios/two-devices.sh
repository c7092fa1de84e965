#: one card with two RDMA devices: a path over each, and when a link goes down the other one serves
#: targets lunar
#: limit 240
. /guest/initiator.sh

# path DEVICE ADDRESS: logs in over it, and makes $path the disk. It is given up soon, so that the test is over soon,
# and not tried again: a request that goes out at the moment when rxe's link comes up is lost for minutes.
path() {
	srp=/sys/class/infiniband_srp/srp-$1-1
	service=$2:5556
	login tl_retry_count=2
	echo 1 >/sys/class/srp_remote_ports/port-$host:1/fast_io_fail_tmo
	echo 50 >/sys/class/srp_remote_ports/port-$host:1/reconnect_delay
	disk
	path=$(cat "/sys/block/${disk#/dev/}/dev")
}

second_device() {
	modprobe dummy numdummies=1 && ip link set dummy0 up && ip addr add 192.168.98.1/24 dev dummy0 &&
		rdma link add rxe1 type rxe netdev dummy0
}

check "there is a second RDMA device" second_device
keeper_options='--groups 2'
firmware_options='--hca rxe1 --listen 192.168.98.1:5556'
target_start
path rxe0 192.168.99.1
first=$host first_path=$path
path rxe1 192.168.98.1
second=$host second_path=$path
table "$first_path" "$second_path"
disk=/dev/mapper/many
# Those of a path are dealt with.
io_error='I/O error, dev dm-'
file_system
load_in_turns
check "the second link goes down" ip link set dummy0 down
wait_for 10 "the card says so" target_says_port down
sleep 4
check "the second link comes up" ip link set dummy0 up
wait_for 10 "the card says so" target_says_port up
still_loaded
load_is_enough
file_system_is_clean
check "the multipath device goes" dmsetup --noudevsync remove many
logout "$first"
logout "$second"
target_stop
check "the second RDMA device goes" rdma link delete rxe1
rmmod dummy
