#: logins that the target rejects, in a loop: each is refused, nothing is left behind, a right one works
#: targets lio lunar
#: limit 300
. /guest/initiator.sh

target_start
before=$(resources)
login
logout
same_resources "$before"
memory_before=$(target_memory)
right=$id_ext
id_ext=00000000deadbeef
round=0
while [ $round -lt 50 ]; do
	if try_login; then fail "a login to a port that is not there was taken"; fi
	round=$((round + 1))
done
id_ext=$right
report CHECK "50 logins to a port that is not there were rejected"
same_resources "$before"
same_memory "$memory_before"
login
disk
check "the disk can be read" dd if="$disk" of=/dev/null bs=1M count=4 iflag=direct
logout
target_stop
