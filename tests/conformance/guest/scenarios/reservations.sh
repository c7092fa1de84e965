#: persistent reservations by sg_persist: every action of PERSISTENT RESERVE OUT from two nexuses, and an agent that dies
#: targets lunar
#: limit 300
. /guest/initiator.sh
. /guest/persistent.sh

witness=first

target_start
path first 1
path second 2

says "REPORT CAPABILITIES: what it can" 'Persist Through Power Loss Capable\(PTPL_C\): 1' sg_persist --in --report-capabilities $p/first
out first "REGISTER" --register --param-sark=0x11
out second "REGISTER AND IGNORE EXISTING KEY" --register-ignore --param-sark=0x22
registered 0x11 0x22
refused $conflict second "a wrong key is refused" --register --param-rk=0x99 --param-sark=0x33

for type in 1 3 5 6 7 8; do
	out first "RESERVE of type $type" --reserve --param-rk=0x11 --prout-type=$type
	check "type $type: its holder writes" writes first
	case $type in
		1 | 3) check_not "type $type: another does not write" writes second ;;
		*) check "type $type: a registrant writes" writes second ;;
	esac
	case $type in
		3) check_not "type $type: another does not read" reads second ;;
		*) check "type $type: another reads" reads second ;;
	esac
	out first "RELEASE of type $type" --release --param-rk=0x11 --prout-type=$type
done
check "after RELEASE all write" writes second

out first "RESERVE, Write Exclusive" --reserve --param-rk=0x11 --prout-type=1
held 0x11 'Write Exclusive'
says "READ FULL STATUS: who holds it" 'Reservation holder' sg_persist --in --read-full-status $p/first
refused $conflict second "another's RESERVE conflicts" --reserve --param-rk=0x22 --prout-type=3
out second "PREEMPT" --preempt --param-rk=0x22 --param-sark=0x11 --prout-type=3
registered 0x22
held 0x22 'Exclusive Access'
check_not "who was preempted does not write" writes first
refused $conflict first "and is registered no more" --release --param-rk=0x11 --prout-type=3

out first "REGISTER anew" --register --param-sark=0x11
io second $p/second.disk 0
short_timeout second
out first "PREEMPT AND ABORT" --preempt-abort --param-rk=0x11 --param-sark=0x22 --prout-type=1
io_conflicts second
check "the new holder writes" writes first

out second "REGISTER, to persist through power loss" --register --param-sark=0x22 --param-aptpl
says "REPORT CAPABILITIES: that it does" 'Persist Through Power Loss Active\(PTPL_A\): 1' sg_persist --in --report-capabilities $p/first
check "lunar pr show tells of it" "$run/bin/lunar" --api $run/api.sock pr show disk0
agent_kill
wait_for 30 "the agent is gone" process_is_gone "$(cat $run/lunar-agent.pid)"
check_not "while there is no agent the card keeps the other out" writes second
agent_start
wait_for 60 "card and agent have met again" is_serving
registered 0x11 0x22
held 0x11 'Write Exclusive'
check_not "after that too" writes second

out first "CLEAR" --clear --param-rk=0x11
registered
check "then everybody writes" writes second
path_goes second
path_goes first
target_stop
