#: what cluster validation looks at; reservations through resets, deaths and loss of power; bad lists, lost files, RESERVE
#: targets lunar
#: limit 300
. /guest/initiator.sh
. /guest/persistent.sh

other_targets=${target_name%:*}:face
other_guid=$(echo "${other_targets#fe80:0000:0000:0000:}" | tr -d :)
registrants='Write Exclusive, registrants only'
witness=w
boot_id=/proc/sys/kernel/random/boot_id

# says_sense TEXT: what the command before said; the text is sg3-utils'.
says_sense() {
	grep -q "$1" /run/said || {
		cat /run/said
		fail "not the expected sense: $1"
	}
}

# answers WITH PATH WHAT CDB...: a command without data ends with this exit code.
answers() {
	with=$1 over=$p/$2 what=$3
	shift 3
	past_attentions sg_raw "$over" "$@"
	[ $ended = "$with" ] || {
		cat /run/said
		fail "$what: \`sg_raw $*\` ended with $ended, not $with"
	}
	report CHECK "$what"
}

# list HEX...: a parameter list, in /run/list.
list() {
	echo "$*" | tr -d ' ' | xxd -r -p >/run/list
}

# bad_list PATH WHAT TEXT ACTION [SCOPE_AND_TYPE [LENGTH]]: PERSISTENT RESERVE OUT with /run/list is refused with this sense.
bad_list() {
	sent=$(stat -c %s /run/list)
	length=${6:-$sent}
	[ "$sent" = 0 ] || send="--send=$sent --infile=/run/list"
	answers $illegal "$1" "$2" ${send:-} 5f "$4" "${5:-5}" 0 0 0 0 $(printf '%x %x' $((length >> 8)) $((length & 255))) 0
	says_sense "$3"
	send=
}

# transport_id NODE: of its initiator port, byte by byte, because sg_persist 1.46 refuses its own short form.
transport_id() {
	echo "0400000000000000000000000000000$1$first_guid" | sed 's/../&,/g; s/,$//'
}

# full_status LINES: what READ FULL STATUS says of each registration, sorted: key, port, holder or not, initiator port.
full_status() {
	in_says --read-full-status
	awk '
		/All target ports bit set/ { key = "all ports" }
		/Key=/ { key = substr($1, 5); holder = "-" }
		/Relative port address/ { port = $4 }
		/<< Reservation holder >>/ { holder = "holder" }
		/^ *([0-9a-f][0-9a-f] +)+[0-9a-f][0-9a-f]$/ { gsub(/ /, ""); print key, port, holder, $0 }' /run/said |
		sort >/run/status
	echo "$1" | cmp -s - /run/status || {
		cat /run/said /run/status
		fail "READ FULL STATUS does not say what is expected"
	}
	report CHECK "READ FULL STATUS"
}

# counts N: PRGENERATION is this many more than before.
counts() {
	now=$(generation)
	check "PRGENERATION counts $1" [ "$now" = $((counted + $1)) ]
	counted=$now
}

# stands WHAT: a holds the reservation, b is registered, and so it is enforced.
stands() {
	registered 0xa1 0xb1
	held 0xa1 "$registrants"
	check "$1: the holder writes" writes a
	check_not "$1: who is not registered does not" writes w
}

# all_are_back: every path works again after the card was away.
all_are_back() {
	wait_for 60 "the card has taken the configuration" is_serving
	for each in a b w; do
		wait_for 60 "$each is back" calm "$p/$each"
	done
}

# other_boot: what starts from now on finds that the machine has started anew.
other_boot() {
	cat /proc/sys/kernel/random/uuid >/run/boot_id
	umount $boot_id 2>/dev/null
	mount -o bind /run/boot_id $boot_id || fail "the boot id cannot be another one"
}

# prompt PATH: the initiator tries to come back each second.
prompt() {
	echo 1 >"/sys/class/srp_remote_ports/port-$(cat "$p/$1.host"):1/reconnect_delay" || fail "no reconnect_delay"
}

mkdir -p $run/pr
mount -t tmpfs -o size=1m tmpfs $run/pr
target_start
path w 9
path a 1
path b 2
for each in a b w; do
	prompt $each
done

# What it can do.
in_says --report-capabilities
for each in 'RLR_C): 1' 'CRH): 1' 'SIP_C): 1' 'ATP_C): 1' 'PTPL_C): 1' 'PTPL_A): 0' 'TMV): 1' \
	'Write Exclusive, all registrants: 1' 'Exclusive Access, registrants only: 1' 'Write Exclusive, registrants only: 1' \
	'Exclusive Access: 1' 'Write Exclusive: 1' 'Exclusive Access, all registrants: 1'; do
	check "REPORT CAPABILITIES: $each" grep -q "$each" /run/said
done

# Registering, and what is refused to those who are not.
counted=$(generation)
registered
out a "REGISTER of key 0 by nobody" --register --param-rk=0 --param-sark=0
counts 0
refused $conflict a "REGISTER with a key that it has not" --register --param-rk=0x99 --param-sark=0xa1
for action in --reserve --release --clear --preempt --preempt-abort; do
	refused $conflict a "$action by nobody" $action --param-rk=0xa1 --param-sark=0xb1 --prout-type=5
done
out a "REGISTER" --register --param-sark=0xa1
counts 1
out b "REGISTER AND IGNORE EXISTING KEY" --register-ignore --param-sark=0xb0
counts 1
out b "and another key" --register-ignore --param-sark=0xb1
counts 1
registered 0xa1 0xb1

# Reserving.
out a "RESERVE" --reserve --param-rk=0xa1 --prout-type=5
held 0xa1 "$registrants"
out a "RESERVE again" --reserve --param-rk=0xa1 --prout-type=5
refused $conflict a "RESERVE of another type" --reserve --param-rk=0xa1 --prout-type=6
refused $conflict a "RESERVE with a wrong key" --reserve --param-rk=0xa2 --prout-type=5
refused $conflict b "RESERVE by another" --reserve --param-rk=0xb1 --prout-type=5
refused $conflict w "RESERVE by nobody" --reserve --param-rk=0 --prout-type=5
counts 0
check "a registrant writes" writes b
check "who is not registered reads" reads w
stands "reserved"

# Releasing.
refused $conflict a "RELEASE with a wrong key" --release --param-rk=0xa2 --prout-type=5
refused $illegal a "RELEASE of another type" --release --param-rk=0xa1 --prout-type=6
says_sense 'Invalid release of persistent reservation'
out b "RELEASE by one that does not hold it" --release --param-rk=0xb1 --prout-type=5
held 0xa1 "$registrants"
untold b
out a "RELEASE" --release --param-rk=0xa1 --prout-type=5
is_held && fail "it is still reserved"
told b 'Reservations released'
untold a
counts 0

# Preempting.
out a "RESERVE" --reserve --param-rk=0xa1 --prout-type=5
refused $conflict b "PREEMPT of a key that nobody has" --preempt --param-rk=0xb1 --param-sark=0x77 --prout-type=5
refused $conflict b "PREEMPT with a wrong key" --preempt --param-rk=0xb2 --param-sark=0xa1 --prout-type=5
out b "PREEMPT of the holder" --preempt --param-rk=0xb1 --param-sark=0xa1 --prout-type=5
told a 'Registrations preempted'
untold b
counts 1
registered 0xb1
held 0xb1 "$registrants"
check_not "the old holder writes no more" writes a
out a "REGISTER anew" --register --param-sark=0xa1
out b "PREEMPT of a registrant" --preempt --param-rk=0xb1 --param-sark=0xa1 --prout-type=5
told a 'Registrations preempted'
counts 2
held 0xb1 "$registrants"
out a "REGISTER anew" --register --param-sark=0xa1
out b "PREEMPT of its own reservation, to another type" --preempt --param-rk=0xb1 --param-sark=0xb1 --prout-type=6
told a 'Reservations released'
counts 2
held 0xb1 'Exclusive Access, registrants only'
check_not "who is not registered does not read" reads w
out b "CLEAR" --clear --param-rk=0xb1
told a 'Reservations preempted'
untold b
counts 1
registered
is_held && fail "it is still reserved"
check "everybody writes" writes w

# SERVICE ACTION RESERVATION KEY zero stands for an all registrants reservation, and for none else.
out a "REGISTER" --register --param-sark=0xa1
out b "REGISTER" --register --param-sark=0xb1
out a "RESERVE, one holder" --reserve --param-rk=0xa1 --prout-type=6
refused $illegal b "PREEMPT of key 0" --preempt --param-rk=0xb1 --param-sark=0 --prout-type=8
says_sense 'Data parameters: byte 8'
out a "RELEASE" --release --param-rk=0xa1 --prout-type=6
out a "RESERVE, all registrants" --reserve --param-rk=0xa1 --prout-type=8
check "each of them reads" reads b
calm $p/a
out b "PREEMPT of key 0" --preempt --param-rk=0xb1 --param-sark=0 --prout-type=8
told a 'Registrations preempted'
registered 0xb1
held 0x0 'Exclusive Access, all registrants'
out b "CLEAR" --clear --param-rk=0xb1

# The holder unregisters.
for type in 1 5 7; do
	out a "REGISTER" --register --param-sark=0xa1
	out b "REGISTER" --register --param-sark=0xb1
	out a "RESERVE of type $type" --reserve --param-rk=0xa1 --prout-type=$type
	calm $p/b
	out a "the holder unregisters" --register --param-rk=0xa1 --param-sark=0
	case $type in
	1) untold b ;;
	5) told b 'Reservations released' ;;
	7)
		untold b
		held 0x0 'Write Exclusive, all registrants'
		check_not "the last one holds it" writes a
		;;
	esac
	out b "b unregisters" --register-ignore --param-sark=0
	registered
	is_held && fail "it is still reserved"
done

# What it outlives.
out a "REGISTER" --register --param-sark=0xa1
out b "REGISTER" --register --param-sark=0xb1
out a "RESERVE" --reserve --param-rk=0xa1 --prout-type=5
check "LOGICAL UNIT RESET" sg_reset --no-escalate --device $p/b
stands "after a reset of the unit"
# ib_srp has no reset of targets: it logs in anew.
check "reset of the target" sg_reset --target $p/b
stands "after a reset of the target"
path_goes a
check_not "the holder is gone: who is not registered does not write" writes w
check "and the registrant does" writes b
path a 1
prompt a
stands "the holder is back"
agent_kill
(sg_persist --no-inquiry --out --register --param-rk=0xb1 --param-sark=0xb2 $p/b && touch /run/waited) >/run/waits 2>&1 &
waits=$!
sleep 1
check_not "REGISTER without an agent waits for one" test -e /run/waited
agent_start
wait $waits
check "and is done then" test -e /run/waited
registered 0xa1 0xb2
out b "and undone" --register --param-rk=0xb2 --param-sark=0xb1
firmware_kill
agent_kill
agent_start
firmware_start
all_are_back
stands "after the death of agent and firmware, in the same boot"

# A loss of power, as the card tells of it: another boot id. Without APTPL nothing is left; with it, everything.
firmware_kill
other_boot
firmware_start
all_are_back
registered
is_held && fail "it is still reserved"
check "without APTPL everybody writes after a loss of power" writes w
out a "REGISTER, APTPL" --register --param-sark=0xa1 --param-aptpl
out b "REGISTER, APTPL" --register --param-sark=0xb1 --param-aptpl
out a "RESERVE" --reserve --param-rk=0xa1 --prout-type=5
for each in firmware agent; do ${each}_kill; done
killed lunar-arena
other_boot
keeper_start
agent_start
firmware_start
all_are_back
stands "with APTPL, after a loss of power of all"
in_says --report-capabilities
check "REPORT CAPABILITIES: PTPL_A" grep -q 'PTPL_A): 1' /run/said
check "PRGENERATION begins anew" [ "$(generation)" = 0 ]

# A directory that takes nothing: the change is refused, and what was is.
dd if=/dev/zero of=$run/pr/ballast bs=4k 2>/dev/null
refused $illegal b "a full directory" --register --param-rk=0xb1 --param-sark=0xb2
says_sense 'Insufficient registration resources'
stands "and nothing has changed"
rm $run/pr/ballast
mount -o remount,ro $run/pr || fail "it cannot be made read-only"
refused $illegal b "a read-only directory" --preempt --param-rk=0xb1 --param-sark=0xa1 --prout-type=5
says_sense 'Insufficient registration resources'
stands "and nothing has changed"
mount -o remount,rw $run/pr
out b "then it is done" --register --param-rk=0xb1 --param-sark=0xb2
out b "and undone" --register --param-rk=0xb2 --param-sark=0xb1

# The newest version is damaged: the one before it counts.
agent_kill
echo damaged >$run/pr/disk0
agent_start
wait_for 60 "card and agent have met again" is_serving
registered 0xa1 0xb2
held 0xa1 "$registrants"
check_not "who is not registered does not write" writes w
check "the agent says so" grep -q 'taken from their previous version' /out/lunar-agent.log

# Both are: nobody gets at the medium.
agent_kill
echo damaged >$run/pr/disk0
echo damaged >$run/pr/disk0.1
agent_start
wait_for 60 "card and agent have met again" is_serving
check "the agent says so" grep -q 'its reservations are lost' /out/lunar-agent.log
for each in a b w; do
	check_not "lost: $each does not read" reads $each
done
answers $protected a "lost: TEST UNIT READY" 0 0 0 0 0 0
says_sense 'Persistent reservation information lost'
refused $protected a "lost: REGISTER" --register --param-sark=0xa1
check "lost: INQUIRY" sg_inq $p/a >/dev/null
says "lunar pr show says so" 'cannot be trusted' "$run/bin/lunar" --api $run/api.sock pr show disk0
out a "REPLACE LOST RESERVATION" --replace-lost --param-sark=0xa1 --prout-type=5
registered 0xa1
held 0xa1 "$registrants"
check "who replaced it writes" writes a
check_not "b is not registered" writes b
refused $illegal a "REPLACE LOST RESERVATION of what is not lost" --replace-lost --param-sark=0xa1 --prout-type=5
says_sense 'Invalid release of persistent reservation'

# REGISTER AND MOVE.
refused $illegal a "to itself" --register-move --param-rk=0xa1 --param-sark=0xb1 --prout-type=5 \
	--transport-id="$(transport_id 1)" --relative-target-port=1
says_sense 'Data parameters: byte 24'
refused $illegal a "to a port that there is not" --register-move --param-rk=0xa1 --param-sark=0xb1 --prout-type=5 \
	--transport-id="$(transport_id 2)" --relative-target-port=9
says_sense 'Data parameters: byte 18'
refused $illegal a "to another transport" --register-move --param-rk=0xa1 --param-sark=0xb1 --prout-type=5 \
	--transport-id=6,0,0,0,50,0,c5,0,5,b3,20,1 --relative-target-port=1
says_sense 'Data parameters: byte 24'
out a "REGISTER AND MOVE" --register-move --param-rk=0xa1 --param-sark=0xb1 --prout-type=5 \
	--transport-id="$(transport_id 2)" --relative-target-port=1
registered 0xa1 0xb1
held 0xb1 "$registrants"
check "the new holder writes" writes b
refused $conflict a "who holds it no more cannot move it" --register-move --param-rk=0xa1 --param-sark=0xa1 --prout-type=5 \
	--transport-id="$(transport_id 1)" --relative-target-port=1
out b "and back, unregistered" --register-move --unreg --param-rk=0xb1 --param-sark=0xa1 --prout-type=5 \
	--transport-id="$(transport_id 1)" --relative-target-port=1
registered 0xa1
held 0xa1 "$registrants"
check_not "who moved it away writes no more" writes b
out a "CLEAR" --clear --param-rk=0xa1

# SPEC_I_PT and ALL_TG_PT.
path a2 1 $other_guid
path b2 2 $other_guid
out a "REGISTER, SPEC_I_PT" --register --param-sark=0xa1 --transport-id="$(transport_id 2)"
registered 0xa1 0xa1
out a "RESERVE" --reserve --param-rk=0xa1 --prout-type=6
full_status "0xa1 0x1 - 0000000000000002$first_guid
0xa1 0x1 holder 0000000000000001$first_guid"
check "the one listed writes" writes b
check_not "through that port alone" writes b2
check_not "and so does the one that listed it" writes a2
out b2 "REGISTER, ALL_TG_PT" --register-ignore --param-sark=0xb1 --param-alltgpt
registered 0xa1 0xb1 0xb1
check "it writes through the other port" writes b2
refused $conflict a2 "ALL_TG_PT comes to all ports or to none" --register --param-sark=0xa2 --param-alltgpt
out a2 "REGISTER AND IGNORE EXISTING KEY, ALL_TG_PT" --register-ignore --param-sark=0xa2 --param-alltgpt
registered 0xa2 0xa2 0xb1 0xb1
out a "CLEAR" --clear --param-rk=0xa2

# Lists that are wrong. RESERVATION KEY, SERVICE ACTION RESERVATION KEY, four bytes, flags, three bytes.
no_key=0000000000000000 key=00000000000000a1
basic="$no_key $key 00000000 00 000000"
listing="$no_key $key 00000000 08 000000"
wrong_length='Parameter list length error'
list "$basic"
head -c 1976 /dev/zero >>/run/list
bad_list a "2,000 bytes" "$wrong_length" 0
head -c 23 /run/list >/run/cut && mv /run/cut /run/list
bad_list a "23 bytes" "$wrong_length" 0
bad_list a "23 bytes that are said to be 24" "$wrong_length" 0 0 24
: >/run/list
bad_list a "no list at all" "$wrong_length" 0
list "$basic"
bad_list a "an unknown service action" 'Command: byte 1 bit 4' 1f
list "$listing 00000000"
bad_list a "SPEC_I_PT with REGISTER AND IGNORE EXISTING KEY" 'Data parameters: byte 20 bit 3' 6
list "$listing 00000030 04$(printf '%046d' 0)"
bad_list a "a TransportID that is not all there" "$wrong_length" 0
list "$listing 00000018 0c$(printf '%046d' 0)"
bad_list a "a TransportID of no known transport" 'Data parameters: byte 28' 0
list "$listing 00000018 06$(printf '%046d' 1)"
bad_list a "a TransportID of another transport" 'Data parameters: byte 28' 0
list "$listing 00000018 05000400 $(printf '%040d' 0)"
bad_list a "an iSCSI name of four bytes" 'Data parameters: byte 30' 0
registered
out a "REGISTER" --register --param-sark=0xa1
list "$key $no_key 00000000 00 000000"
bad_list a "another scope" 'Command: byte 2 bit 7' 1 15
bad_list a "an obsolete type" 'Command: byte 2 bit 3' 1 2
list "$key $key 00000000 08 000000 00000000"
bad_list a "SPEC_I_PT by one that is registered" 'Data parameters: byte 20 bit 3' 0
is_held && fail "it is reserved"
out a "unregister" --register --param-rk=0xa1 --param-sark=0
check "PERSISTENT RESERVE IN ends where its allocation length does" sh -c "
	sg_raw --request=4096 $p/w 5e 0 0 0 0 0 0 0 4 0 2>&1 | grep -q 'Received 4 bytes'"

# A thousand at once.
{
	echo "$listing $(printf '%08x' 24000)"
	seq 1 1000 | while read -r each; do printf '0400000000000000%016x%016x' 7 "$each"; done
} | tr -d ' \n' | xxd -r -p >/run/list
check "REGISTER of a thousand more" past_attentions sg_raw --send=24028 --infile=/run/list $p/a 5f 0 0 0 0 0 0 5d dc 0
in_says --read-keys
check "READ KEYS has them all" grep -q ' 1001 registered' /run/said
# More than sg_persist takes: a header of eight bytes, and 48 for each.
past_attentions sg_raw --request=65535 $p/w 5e 3 0 0 0 0 0 ff ff 0
check "READ FULL STATUS too" grep -q 'Received 48056 bytes' /run/said
out a "CLEAR" --clear --param-rk=0xa1
registered

# RESERVE and RELEASE, of six and of ten bytes.
reserve='16 0 0 0 0 0' release='17 0 0 0 0 0'
for length in 6 10; do
	answers 0 a "RESERVE ($length)" $reserve
	answers 0 a "again" $reserve
	answers $conflict b "by another" $reserve
	check_not "another does not read" reads b
	check "the holder does" reads a
	answers 0 b "RELEASE of another" $release
	check_not "has no effect" writes b
	answers 0 a "RELEASE ($length)" $release
	check "then another writes" writes b
	reserve='56 0 0 0 0 0 0 0 0 0' release='57 0 0 0 0 0 0 0 0 0'
done
answers 0 a "RESERVE" $reserve
answers $conflict b "TEST UNIT READY of another" 0 0 0 0 0 0
check "INQUIRY of another" sg_inq $p/b >/dev/null
refused $conflict a "REGISTER of the holder" --register --param-sark=0xa1
check "LOGICAL UNIT RESET" sg_reset --no-escalate --device $p/b
check "RESERVE ends with it" writes b
answers 0 a2 "RESERVE" $reserve
check_not "another port of the initiator is another nexus" writes a
path_goes a2
wait_for 10 "RESERVE ends with the nexus" writes b
out a "REGISTER" --register --param-sark=0xa1
answers $conflict a "RESERVE by one that is registered" $reserve
answers $conflict b "RELEASE by one that is not" $release
out a "RESERVE, persistent" --reserve --param-rk=0xa1 --prout-type=1
answers 0 a "RESERVE by its holder" $reserve
answers 0 a "RELEASE by its holder" $release
held 0xa1 'Write Exclusive'
out a "CLEAR" --clear --param-rk=0xa1
check "and everybody writes" writes b
answers 0 a "RESERVE" $reserve
# Linux flushes a cache when it logs out, and would wait for an agent with that.
echo temporary write through >"/sys/class/scsi_disk/$(cat $p/a.host):0:0:0/cache_type" || fail "no cache_type"
agent_kill
check_not "while there is no agent another does not write" writes b
path_goes a
agent_start
wait_for 60 "card and agent have met again" is_serving
wait_for 10 "who went while there was none holds nothing" writes b
path a 1
answers $illegal a "RESERVE for a third party" 16 10 0 0 0 0
says_sense 'Command: byte 1 bit 4'

for each in a b b2 w; do
	path_goes $each
done
umount $boot_id
umount -l $run/pr
target_stop
