#: persistent reservations by sg_persist: every action of PERSISTENT RESERVE OUT from two nexuses, and an agent that dies
#: targets lunar
#: limit 300
. /guest/initiator.sh

# sg3-utils' exit code for RESERVATION CONFLICT.
conflict=24

# calm DEVICE: takes the unit attentions that wait for this nexus.
calm() {
	for _ in 1 2 3 4; do
		sg_turs "$1" >/dev/null 2>&1 && return
	done
	fail "$1 has no end of unit attentions"
}

# out DEVICE WHAT OPTIONS...: PERSISTENT RESERVE OUT succeeds.
out() {
	device=$1 what=$2
	shift 2
	calm "$device"
	says "$what" '' sg_persist --out "$@" "$device"
}

# keys PATTERN: what READ KEYS says on one line.
keys() {
	calm "$first"
	sg_persist --in --read-keys "$first" 2>&1 | tr '\n' ' ' >/run/keys
	grep -E -q "$1" /run/keys || {
		cat /run/keys
		fail "READ KEYS says nothing like '$1'"
	}
	report CHECK "READ KEYS: $1"
}

reserved() {
	calm "$first"
	says "READ RESERVATION: $1" "$1" sg_persist --in --read-reservation "$first"
}

writes() {
	dd if=/dev/zero of="$1" bs=4k count=1 oflag=direct 2>/dev/null
}

reads() {
	dd if="$1" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
}

target_start
login initiator_ext=0000000000000001
disk
first=$generic first_disk=$disk first_host=$host
login initiator_ext=0000000000000002
disk
second=$generic second_disk=$disk
calm "$first"
calm "$second"

says "REPORT CAPABILITIES: what it can" 'Persist Through Power Loss Capable\(PTPL_C\): 1' sg_persist --in --report-capabilities "$first"
out "$first" "REGISTER" --register --param-sark=0x11
out "$second" "REGISTER AND IGNORE EXISTING KEY" --register-ignore --param-sark=0x22
keys '0x11.*0x22|0x22.*0x11'
ends $conflict "a wrong key is refused" sg_persist --out --register --param-rk=0x99 --param-sark=0x33 "$second"

for type in 1 3 5 6 7 8; do
	out "$first" "RESERVE of type $type" --reserve --param-rk=0x11 --prout-type=$type
	check "type $type: its holder writes" writes "$first_disk"
	case $type in
		1 | 3) check_not "type $type: another does not write" writes "$second_disk" ;;
		*) check "type $type: a registrant writes" writes "$second_disk" ;;
	esac
	case $type in
		3) check_not "type $type: another does not read" reads "$second_disk" ;;
		*) check "type $type: another reads" reads "$second_disk" ;;
	esac
	out "$first" "RELEASE of type $type" --release --param-rk=0x11 --prout-type=$type
done
check "after RELEASE all write" writes "$second_disk"

out "$first" "RESERVE, Write Exclusive" --reserve --param-rk=0x11 --prout-type=1
reserved 'Write Exclusive'
says "READ FULL STATUS: who holds it" 'Reservation holder' sg_persist --in --read-full-status "$first"
calm "$second"
ends $conflict "another's RESERVE conflicts" sg_persist --out --reserve --param-rk=0x22 --prout-type=3 "$second"
out "$second" "PREEMPT" --preempt --param-rk=0x22 --param-sark=0x11 --prout-type=3
keys '1 registered reservation key.*0x22'
reserved 'Exclusive Access'
check_not "who was preempted does not write" writes "$first_disk"
calm "$first"
ends $conflict "and is registered no more" sg_persist --out --release --param-rk=0x11 --prout-type=3 "$first"

out "$first" "REGISTER anew" --register --param-sark=0x11
fio --name=load --eta=never --thread --filename="$second_disk" --size=4m --rw=randwrite --bs=4k --iodepth=8 \
	--ioengine=libaio --direct=1 --time_based --runtime=600 --output=/run/load >/dev/null 2>&1 &
load=$!
sleep 2
check "the holder writes all the while" kill -0 $load
out "$first" "PREEMPT AND ABORT" --preempt-abort --param-rk=0x11 --param-sark=0x22 --prout-type=1
wait $load && fail "the one that was preempted went on writing"
report CHECK "the writes of the one that was preempted end"
check "the new holder writes" writes "$first_disk"

out "$second" "REGISTER, to persist through power loss" --register --param-sark=0x22 --param-aptpl
says "REPORT CAPABILITIES: that it does" 'Persist Through Power Loss Active\(PTPL_A\): 1' sg_persist --in --report-capabilities "$first"
check "lunar pr show tells of it" "$run/bin/lunar" --api $run/api.sock pr show disk0
agent_kill
wait_for 30 "the agent is gone" process_is_gone "$(cat $run/lunar-agent.pid)"
check_not "while there is no agent the card keeps the other out" writes "$second_disk"
agent_start
wait_for 60 "card and agent have met again" is_serving
keys '2 registered reservation keys'
reserved 'Write Exclusive'
check_not "after that too" writes "$second_disk"

out "$first" "CLEAR" --clear --param-rk=0x11
keys 'NO registered reservation keys|no registered reservation keys|0 registered'
check "then everybody writes" writes "$second_disk"
logout
logout "$first_host"
target_stop
