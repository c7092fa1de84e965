#: the firmware is killed and started again under load, twice: no error, nothing lost
#: targets lunar
#: limit 300
. /guest/initiator.sh

target_start
login
disk
file_system
load 40
for round in 1 2; do
	still_loaded
	firmware_kill
	sleep 2
	firmware_start
	sleep 14
done
load_is_over
file_system_is_clean
logout
target_stop
