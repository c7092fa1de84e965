#: the target is disabled and enabled under load: the path comes back, no error, nothing lost
#: targets lio lunar
#: limit 300
. /guest/initiator.sh

target_start
login
disk
file_system
load 20
target_disable
sleep 3
target_enable
still_loaded
load_is_over
check "the session was lost and came back" kernel_says 'reconnect succeeded|reconnect attempt .* succeeded'
file_system_is_clean
logout
target_stop
