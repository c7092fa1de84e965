#: what fence agents and mpathpersist do: two nodes fence and unfence each other under fio, race, and have two paths each
#: targets lunar
#: limit 300
. /guest/initiator.sh
. /guest/persistent.sh

first_guid=$ioc_guid
other_targets=${target_name%:*}:face
other_guid=$(echo "${other_targets#fe80:0000:0000:0000:}" | tr -d :)
registrants='Write Exclusive, registrants only'
witness=w

# key PATH: of its node. The agent makes it of the cluster's name and the node's number.
key() {
	case $1 in
	a*) echo 0x4c550001 ;;
	b*) echo 0x4c550002 ;;
	esac
}

# unfenced NODE [OPTION]: the agent's "on", which is its first start too.
unfenced() {
	out "$1" "on: $1 registers" --register-ignore --param-sark="$(key "$1")" $2
	is_held || out "$1" "$1 reserves" --reserve --param-rk="$(key "$1")" --prout-type=5
	in_says --read-keys
	check "$1 finds its key" grep -q "$(key "$1")" /run/said
	is_held || fail "$1 finds no reservation"
	check "type 5" grep -q "$registrants" /run/said
	check "and writes" writes "$1"
}

# fenced BY NODE: the agent's "off", and its "status".
fenced() {
	out "$1" "off: $1 preempts $2" --preempt-abort --param-rk="$(key "$1")" --param-sark="$(key "$2")" --prout-type=5
	registered "$(key "$1")"
	held "$(key "$1")" "$registrants"
	check_not "$2 writes no more" writes "$2"
	check "and $1 does" writes "$1"
}

# short_timeout PATH: what was on its way when its nexus was preempted has no status (TAS is zero): Linux gives it up by
# itself, after half a minute else.
short_timeout() {
	echo 3 >"/sys/block/$(basename "$(readlink "$p/$1.disk")")/device/timeout"
}

# preempts BY NODE: as a fence agent, once more after a unit attention; leaves its exit code.
preempts() {
	ended=$attention
	while [ $ended = $attention ]; do
		sg_persist --no-inquiry --out --preempt-abort --param-rk="$(key "$1")" --param-sark="$(key "$2")" \
			--prout-type=5 "$p/$1" >"$p/race.$1" 2>&1
		ended=$?
	done
	echo $ended >"$p/race.$1"
}

# race: both at once. One of them is told that it has fenced the other, and that is so.
race() {
	preempts a b &
	race_a=$!
	preempts b a &
	race_b=$!
	wait $race_a
	wait $race_b
	case "$(cat $p/race.a) $(cat $p/race.b)" in
	"0 $conflict") winner=a loser=b ;;
	"$conflict 0") winner=b loser=a ;;
	*) fail "a race ended with $(cat $p/race.a) for a and $(cat $p/race.b) for b" ;;
	esac
	report CHECK "the race: one won"
	registered "$(key $winner)"
	held "$(key $winner)" "$registrants"
	check_not "the loser writes no more" writes $loser
	check "the winner does" writes $winner
	unfenced $loser
}

# many NODE PATH...: the node's multipath device over these paths from now on, each I/O through the next of them.
many() {
	name=many-$1
	shift
	line="0 $((target_size / 512)) multipath 1 queue_if_no_path 0 1 1 round-robin 0 $# 1"
	for each in "$@"; do
		line="$line $(cat "/sys/block/$(basename "$(readlink "$p/$each.disk")")/dev") 1"
	done
	if [ -e /dev/mapper/"$name" ]; then
		dmsetup --noudevsync reload "$name" --table "$line" &&
			dmsetup --noudevsync suspend --noflush "$name" && dmsetup --noudevsync resume "$name"
	else
		dmsetup --noudevsync create "$name" --table "$line" && dmsetup mknodes
	fi || fail "there is no multipath device over $*"
}

target_start
path w 9
path a 1
path b 2

# A fence agent.
for persists in '' --param-aptpl; do
	unfenced a $persists
	unfenced b $persists
	registered "$(key a)" "$(key b)"
	held "$(key a)" "$registrants"
	check_not "who is no node does not write" writes w
	check "and reads" reads w
	io a $p/a.disk 1
	io b $p/b.disk 2
	# The one that does not hold the reservation fences the one that does, in turn; once will do the second time.
	for by in b $([ -n "$persists" ] || echo a); do
		[ $by = a ] && node=b || node=a
		short_timeout $node
		fenced $by $node
		io_conflicts $node
		io_goes_on $by
		unfenced $node $persists
		io $node $p/$node.disk 1
	done
	# The holder fences the other.
	fenced a b
	io_conflicts b
	io_is_enough a
	unfenced b $persists
	out a "CLEAR: the cluster ends" --clear --param-rk="$(key a)"
	registered
	check "and everybody writes" writes w
done

unfenced a
unfenced b
for round in 1 2 3 4; do
	race
done
out b "CLEAR" --clear --param-rk="$(key b)"

# mpathpersist: each node has a second path, to another target port, and one key for both.
modprobe -a dm_multipath dm_round_robin || fail "dm-multipath does not load"
id_ext=$other_guid ioc_guid=$other_guid
path a2 1
path b2 2
many a a a2
many b b b2
for each in a a2 b b2; do
	out $each "REGISTER through $each" --register --param-sark="$(key $each)"
done
out a "RESERVE through one path" --reserve --param-rk="$(key a)" --prout-type=5
registered "$(key a)" "$(key a)" "$(key b)" "$(key b)"
for each in a a2 b b2; do
	check "$each writes" writes $each
done
check_not "who is no node does not write" writes w
io a /dev/mapper/many-a 1
io b /dev/mapper/many-b 2

# A path that goes takes neither registration nor reservation with it, and finds both when it is back.
path_goes a
io_goes_on a
registered "$(key a)" "$(key a)" "$(key b)" "$(key b)"
held "$(key a)" "$registrants"
out a2 "RELEASE through a path that does not hold it" --release --param-rk="$(key a)" --prout-type=5
held "$(key a)" "$registrants"
many a a2
id_ext=$first_guid ioc_guid=$first_guid
path a 1
check "it writes at once" writes a
out a "and is registered again, as multipathd does" --register-ignore --param-sark="$(key a)"
registered "$(key a)" "$(key a)" "$(key b)" "$(key b)"
many a a a2
# A path that there was not before, by another port of the node.
path a3 3
check_not "a new path does not write" writes a3
out a3 "until it is registered" --register-ignore --param-sark="$(key a)"
check "then it does" writes a3
many a a a2 a3
io_goes_on a

# The key stands for all paths of the node.
calm $p/a3
out b "PREEMPT" --preempt --param-rk="$(key b)" --param-sark="$(key a)" --prout-type=5
registered "$(key b)" "$(key b)"
held "$(key b)" "$registrants"
io_conflicts a
io_is_enough b
for each in a a2 a3; do
	check_not "$each writes no more" writes $each
done
check "the multipath device has not lost its paths over it" \
	sh -c '[ "$(dmsetup status many-a | tr " " "\n" | grep -c "^A$")" -ge 3 ]'

# RELEASE: through the other path without effect, and for registrants only types everybody hears of it.
for each in a a2; do
	out $each "REGISTER through $each" --register --param-sark="$(key a)"
	calm $p/$each
done
calm $p/b2
out b2 "RELEASE through the other path" --release --param-rk="$(key b)" --prout-type=5
held "$(key b)" "$registrants"
for each in a a2 b; do
	untold $each
done
out b "RELEASE through the one that holds it" --release --param-rk="$(key b)" --prout-type=5
is_held && fail "it is still reserved"
for each in a a2 b2; do
	told $each 'Reservations released'
done
untold b
out a "RESERVE, all registrants" --reserve --param-rk="$(key a)" --prout-type=7
check "all of them write" writes b2
out a2 "RELEASE through the other path, which holds it too" --release --param-rk="$(key a)" --prout-type=7
is_held && fail "it is still reserved"

# The path that holds the reservation is gone for good. mpathpersist clears through another one, and sets up all anew.
out a "RESERVE" --reserve --param-rk="$(key a)" --prout-type=5
many a a2
path_goes a
out a2 "RELEASE has no effect" --release --param-rk="$(key a)" --prout-type=5
held "$(key a)" "$registrants"
for each in b b2; do
	calm $p/$each
done
out a2 "CLEAR has" --clear --param-rk="$(key a)"
registered
for each in b b2; do
	told $each 'Reservations preempted'
done
for each in a2 b b2; do
	out $each "REGISTER through $each" --register --param-sark="$(key $each)"
done
out a2 "RESERVE" --reserve --param-rk="$(key a)" --prout-type=5
for each in a b; do
	io $each /dev/mapper/many-$each 1
	io_is_enough $each
done

for each in a b; do
	check "the multipath device of $each goes" dmsetup --noudevsync remove many-$each
done
for each in a2 a3 b b2 w; do
	path_goes $each
done
target_stop
