#: large transfers are cut in the middle, by resets and by the port going away: nothing is lost
#: targets lio lunar
#: limit 400
# SCST's checklist: aborting multipart RDMA transfers.
. /guest/initiator.sh

target_start
login
disk
file_system
load 28 --bs=1m --size=32m --iodepth=8
for round in 1 2 3; do
	check "reset of the device" sg_reset --device "$generic"
	sleep 1
done
still_loaded
target_disable
sleep 1
target_enable
sleep 13
still_loaded
load_is_over
file_system_is_clean
logout
target_stop
