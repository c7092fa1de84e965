#: a node is fenced that is silent, its link down in the middle of its writes: that takes, and the other goes on
#: targets lunar
#: limit 240
. /guest/initiator.sh
. /guest/persistent.sh

witness=w

second_device() {
	modprobe dummy numdummies=1 && ip link set dummy0 up && ip addr add 192.168.98.1/24 dev dummy0 &&
		rdma link add rxe1 type rxe netdev dummy0
}

# written FILE: what is where b writes, as a sees it.
written() {
	dd if=$p/a.disk of="$1" bs=1M count=1 skip=2 iflag=direct 2>/dev/null || fail "a cannot read"
}

check "there is a second RDMA device" second_device
keeper_options='--groups 2'
firmware_options='--hca rxe1 --listen 192.168.98.1:5556'
target_start
path w 9
path a 1
srp=/sys/class/infiniband_srp/srp-rxe1-1
service=192.168.98.1:5556
path b 2
# It is given up soon, and does not come back: rxe carries no connection request over a link that went down with one.
short_timeout b
remote=/sys/class/srp_remote_ports/port-$(cat $p/b.host):1
echo 2 >$remote/fast_io_fail_tmo
echo 50 >$remote/reconnect_delay
out a "REGISTER" --register --param-sark=0xa1
out b "REGISTER" --register --param-sark=0xb1
out b "RESERVE" --reserve --param-rk=0xb1 --prout-type=5
io a $p/a.disk 1
io b $p/b.disk 2
check "the link of b goes down" ip link set dummy0 down
out a "PREEMPT AND ABORT" --preempt-abort --param-rk=0xa1 --param-sark=0xb1 --prout-type=5
written $p/then
registered 0xa1
held 0xa1 'Write Exclusive, registrants only'
check "a writes" writes a
wait_for 60 "the I/O of b ends" test -e $p/b.failed
sleep 2
written $p/now
check "no write of b came after it was fenced" cmp $p/then $p/now
io_is_enough a
# Nor does it let go of a connection while the link is down.
check "the link comes up" ip link set dummy0 up
wait_for 10 "the card says so" target_says_port up
sleep 2
for each in a w b; do
	path_goes $each
done
target_stop
check "the second RDMA device goes" rdma link delete rxe1
rmmod dummy
