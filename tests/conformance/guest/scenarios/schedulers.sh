#: I/O through each of the kernel's I/O schedulers
#: targets lio lunar
#: limit 180
# What blktests' srp/012 looks at.
. /guest/initiator.sh

target_start
login
disk
# mq-deadline is built in.
modprobe -a bfq kyber-iosched
for scheduler in none mq-deadline kyber bfq; do
	queue=/sys/block/${disk#/dev/}/queue/scheduler
	check "the scheduler is $scheduler" sh -c "echo $scheduler >$queue"
	verified "with $scheduler" --filename="$disk" --rw=randwrite --bs=4k --size=2m --iodepth=16
done
logout
target_stop
