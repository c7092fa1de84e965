#: a target with send queues of 64 entries: deeper load from Linux's initiator and from ours, and nothing is lost
#: targets lunar
#: limit 180
# What SCST's srpt checklist does with its srp_sq_size.
. /guest/initiator.sh

firmware_options='--srp-sq-size 64'
target_start
login cmd_sg_entries=1
disk
check "our initiator uses all its credits" srp-initiator $service $ioc_guid load
verified "of 64 KiB, deeper than its queues" --filename="$disk" --rw=randwrite --bs=64k --size=8m --iodepth=128
verified "of 4 KiB, deeper than its queues" --filename="$disk" --rw=randwrite --bs=4k --size=2m --iodepth=128
logout
target_stop
