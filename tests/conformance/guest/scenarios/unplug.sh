#: the link goes down and up; the RDMA device is taken away under load and comes back: nobody hangs, a new login works
#: targets lio lunar
#: limit 180
# What blktests' srp/016 looks at.
. /guest/initiator.sh

target_start
check "the link goes down" ip link set eth0 down
wait_for 10 "the target noticed" target_says_port down
check "the link comes up" ip link set eth0 up
wait_for 10 "the target noticed" target_says_port up
login
disk
fio --name=unplug --eta=never --thread --filename="$disk" --rw=randread --bs=4k --size=16m --iodepth=16 \
	--ioengine=libaio --direct=1 --time_based --runtime=12 --output=/run/unplug &
load=$!
sleep 3
check "there is load" kill -0 $load
check "the RDMA device is taken away" rdma link delete rxe0
wait $load
report CHECK "the load is over"
wait_for 60 "the session is gone" host_is_gone "$host"
check "the RDMA device is back" rdma link add rxe0 type rxe netdev eth0
target_device_is_back
login
disk
check "the disk can be read" dd if="$disk" of=/dev/null bs=1M count=4 iflag=direct
logout
target_stop
