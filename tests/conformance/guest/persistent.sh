# The words of scenarios about persistent reservations; needs initiator.sh. The nodes of a cluster are nexuses of this guest,
# told apart by initiator_ext. What is registered and reserved is asked for by a nexus that never registers: no unit
# attention about reservations comes to it.

# sg3-utils' exit codes: ILLEGAL REQUEST, UNIT ATTENTION, DATA PROTECT, RESERVATION CONFLICT.
illegal=5 attention=6 protected=7 conflict=24

p=/run/paths
first_guid=$ioc_guid

# path NAME NODE [GUID]: logs in as the node of this number, to another target where one is named. Then $p/NAME is the
# generic device, $p/NAME.disk the disk, and $p/NAME.host has the number of the SCSI host.
path() {
	id_ext=${3:-$first_guid} ioc_guid=${3:-$first_guid}
	login "initiator_ext=000000000000000$2"
	disk
	mkdir -p $p
	ln -sf "$generic" "$p/$1"
	ln -sf "$disk" "$p/$1.disk"
	echo "$host" >"$p/$1.host"
	calm "$p/$1"
}

path_goes() {
	logout "$(cat "$p/$1.host")"
	rm "$p/$1" "$p/$1.disk" "$p/$1.host"
}

# calm DEVICE: takes the unit attentions that wait for this nexus.
calm() {
	for _ in 1 2 3 4; do
		sg_turs "$1" >/dev/null 2>&1 && return
	done
	fail "$1 has no end of unit attentions"
}

# past_attentions COMMAND...: again, while it ends with a unit attention; what it says is in /run/said.
past_attentions() {
	for _ in 1 2 3 4 5; do
		"$@" >/run/said 2>&1
		ended=$?
		[ $ended = $attention ] || return $ended
	done
	return $ended
}

# out PATH WHAT OPTIONS...: PERSISTENT RESERVE OUT succeeds.
out() {
	over=$p/$1 what=$2
	shift 2
	past_attentions sg_persist --no-inquiry --out "$@" "$over" || {
		cat /run/said
		fail "$what: \`sg_persist --out $*\` ended with $ended"
	}
	report CHECK "$what"
}

# refused WITH PATH WHAT OPTIONS...: PERSISTENT RESERVE OUT ends with this exit code.
refused() {
	with=$1 over=$p/$2 what=$3
	shift 3
	past_attentions sg_persist --no-inquiry --out -v "$@" "$over"
	[ $ended = "$with" ] || {
		cat /run/said
		fail "$what: \`sg_persist --out $*\` ended with $ended, not $with"
	}
	report CHECK "$what"
}

# in_says WHAT ACTION: what PERSISTENT RESERVE IN says is in /run/said.
in_says() {
	past_attentions sg_persist --no-inquiry --in "$1" $p/$witness || {
		cat /run/said
		fail "PERSISTENT RESERVE IN $1 ended with $ended"
	}
}

# has_keys KEY...: READ KEYS has these and no other, in any order.
has_keys() {
	in_says --read-keys
	sed -n 's/^ *\(0x[0-9a-f]*\)$/\1/p' /run/said | sort >/run/keys
	for each in "$@"; do echo "$each"; done | sort | cmp -s - /run/keys
}

registered() {
	has_keys "$@" || {
		cat /run/said
		fail "READ KEYS has not just these: $*"
	}
	report CHECK "READ KEYS: ${*:-none}"
}

# held KEY TYPE: READ RESERVATION has this key, and a type like the pattern.
held() {
	in_says --read-reservation
	grep -q "Key=$1\$" /run/said && grep -E -q "type: $2\$" /run/said || {
		cat /run/said
		fail "the reservation is not of $1, $2"
	}
	report CHECK "READ RESERVATION: $1, $2"
}

is_held() {
	in_says --read-reservation
	! grep -q 'NO reservation held' /run/said
}

# generation: PRGENERATION, as a decimal number.
generation() {
	in_says --read-keys
	echo $(($(sed -n 's/.*PR generation=\(0x[0-9a-f]*\).*/\1/p' /run/said)))
}

# told PATH PATTERN: a unit attention that reads so waits for it, and no other.
told() {
	ends $attention "a unit attention for $1: $2" sg_raw "$p/$1" 0 0 0 0 0 0
	grep -q "$2" /run/said || {
		cat /run/said
		fail "the unit attention for $1 is not: $2"
	}
	untold "$1"
}

# untold PATH: no unit attention waits for it.
untold() {
	check "no unit attention for $1" sg_turs "$p/$1"
}

# Past the page cache, which may know better than the disk.
writes() {
	dd if=/dev/zero of="$p/$1.disk" bs=4k count=1 oflag=direct 2>/dev/null
}

reads() {
	dd if="$p/$1.disk" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
}

# io NAME DISK MIB: writes and verifies that MiB of the disk in the background, turn by turn, until io_is_enough or an error.
io() {
	rm -f $p/"$1".enough $p/"$1".failed
	until [ -e $p/"$1".enough ]; do
		fio --name="$1" --eta=never --thread --filename="$2" --offset="$3"m --size=512k --rw=randwrite --bs=4k \
			--iodepth=4 --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 \
			>$p/"$1".fio 2>&1 || touch $p/"$1".failed $p/"$1".enough
	done &
	echo $! >$p/"$1".io
	usleep 500000
	io_goes_on "$1"
}

io_goes_on() {
	[ ! -e $p/"$1".failed ] || {
		cat $p/"$1".fio
		fail "the I/O of $1 met an error, or did not read what it had written"
	}
	report CHECK "the I/O of $1 goes on, without an error"
}

io_is_enough() {
	touch $p/"$1".enough
	wait "$(cat $p/"$1".io)"
	io_goes_on "$1"
}

# io_conflicts NAME: it ends with RESERVATION CONFLICT, which Linux calls an invalid exchange.
io_conflicts() {
	wait_for 60 "the I/O of $1 ends" test -e $p/"$1".failed
	check "with a reservation conflict" grep -q 'Invalid exchange' $p/"$1".fio
}

# short_timeout PATH: what was on its way when its nexus was preempted has no status (TAS is zero): Linux gives it up by
# itself, after half a minute else.
short_timeout() {
	echo 2 >"/sys/block/$(basename "$(readlink "$p/$1.disk")")/device/timeout"
}
