#: login and logout in a loop leave nothing behind
#: targets lio lunar
#: limit 600
. /guest/initiator.sh

target_start
# The first login makes what stays.
login
disk
logout
before=$(resources)
memory_before=$(target_memory)
round=0
while [ $round -lt "$target_logins" ]; do
	try_login || fail "login $round"
	# Gone while the disk is still being looked at, too.
	logout >/dev/null
	round=$((round + 1))
done
same_resources "$before"
memory_after=$(target_memory)
measure target_memory_growth $((memory_after - memory_before)) KiB
check "the target's memory has not grown by a MiB" [ $((memory_after - memory_before)) -lt 1024 ]
login
disk
logout
target_stop
