#: login and logout in a loop leave nothing behind
#: targets lio lunar
#: limit 600
. /guest/initiator.sh

target_start
before=$(resources)
# The first login makes what stays in memory.
login
disk
logout
same_resources "$before"
memory_before=$(target_memory)
round=0
while [ $round -lt "$target_logins" ]; do
	try_login || fail "login $round"
	# Gone while the disk is still being looked at, too.
	logout >/dev/null
	round=$((round + 1))
done
same_resources "$before"
same_memory "$memory_before"
login
disk
logout
target_stop
