#: what fence agents and mpathpersist do: two nodes fence and unfence each other under fio, race, and have two paths each
#: targets lunar
#: limit 300
. /guest/initiator.sh
. /guest/persistent.sh

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
	check "and writes" writes "$1"
}

# place NODE: where on the disk it writes, in MiB.
place() {
	case $1 in
	a) echo 1 ;;
	b) echo 2 ;;
	esac
}

# works NODE: writes and verifies there until it is fenced.
works() {
	short_timeout "$1"
	io "$1" "$p/$1.disk" "$(place "$1")"
}

# written BY NODE: what is where the node writes, as the other sees it.
written() {
	dd if="$p/$1.disk" bs=1M count=1 skip="$(place "$2")" iflag=direct 2>/dev/null || fail "$1 cannot read"
}

# fenced BY NODE: the agent's "off", and its "status". What the node had begun to write is over by then: what is there stays.
fenced() {
	out "$1" "off: $1 preempts $2" --preempt-abort --param-rk="$(key "$1")" --param-sark="$(key "$2")" --prout-type=5
	written "$1" "$2" >$p/then
	registered "$(key "$1")"
	held "$(key "$1")" "$registrants"
	check_not "$2 writes no more" writes "$2"
	check "and $1 does" writes "$1"
	io_conflicts "$2"
	io_goes_on "$1"
	written "$1" "$2" >$p/now
	check "no write of $2 came after that" cmp $p/then $p/now
}

# insists NODE OTHER ACTION: as an agent does, once more after a unit attention; leaves its exit code.
insists() {
	ended=$attention
	while [ $ended = $attention ]; do
		sg_persist --no-inquiry --out "$3" --param-rk="$(key "$1")" --param-sark="$(key "$2")" \
			--prout-type=5 "$p/$1" >"$p/insists.$1" 2>&1
		ended=$?
	done
	echo $ended >"$p/insists.$1"
}

# at_once ACTION: both nodes at once. $winner is told that it is done, $loser that it conflicts, and the reservation is the
# winner's.
at_once() {
	insists a b "$1" &
	both=$!
	insists b a "$1" &
	both="$both $!"
	for each in $both; do
		wait "$each"
	done
	case "$(cat $p/insists.a) $(cat $p/insists.b)" in
	"0 $conflict") winner=a loser=b ;;
	"$conflict 0") winner=b loser=a ;;
	*) fail "$1 at once ended with $(cat $p/insists.a) for a and $(cat $p/insists.b) for b" ;;
	esac
	held "$(key $winner)" "$registrants"
}

# race: both fence each other, under load. One of them is told that it has, and that is so.
race() {
	at_once --preempt-abort
	registered "$(key $winner)"
	check_not "the loser writes no more" writes $loser
	io_conflicts $loser
	io_goes_on $winner
	unfenced $loser
	works $loser
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

# A fence agent: the one that does not hold the reservation fences the one that does, in turn; with APTPL the holder fences
# the other.
turns='b:a a:b'
for persists in '' --param-aptpl; do
	unfenced a $persists
	unfenced b $persists
	registered "$(key a)" "$(key b)"
	held "$(key a)" "$registrants"
	check_not "who is no node does not write" writes w
	check "and reads" reads w
	works a
	works b
	for turn in $turns; do
		by=${turn%:*} node=${turn#*:}
		fenced $by $node
		unfenced $node $persists
		works $node
	done
	io_is_enough a
	io_is_enough b
	out a "CLEAR: the cluster ends" --clear --param-rk="$(key a)"
	registered
	check "and everybody writes" writes w
	turns=a:b
done

# Two that start at once, and two that fence each other at once.
for round in 1 2; do
	for each in a b; do
		out $each "$each registers" --register-ignore --param-sark="$(key $each)"
	done
	at_once --reserve
	check "$winner writes" writes $winner
	out a "CLEAR" --clear --param-rk="$(key a)"
done
unfenced a
unfenced b
works a
works b
for round in 1 2 3; do
	race
done
io_is_enough a
io_is_enough b
out b "CLEAR" --clear --param-rk="$(key b)"

# mpathpersist: each node has a second path, to another target port, and one key for both.
modprobe -a dm_multipath dm_round_robin || fail "dm-multipath does not load"
path a2 1 $other_guid
path b2 2 $other_guid
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
