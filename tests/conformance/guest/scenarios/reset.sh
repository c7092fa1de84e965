#: sg_reset of device, target, bus and host under load: no error, nothing lost
#: targets lio lunar
#: limit 300
# What blktests' srp/014 looks at.
. /guest/initiator.sh

target_start
login
disk
file_system
load 15
for round in 1 2; do
	for what in device target bus host; do
		check "reset of the $what" sg_reset --$what "$generic"
		sleep 1
	done
done
still_loaded
load_is_over
file_system_is_clean
logout
target_stop
