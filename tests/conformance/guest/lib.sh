# What scenarios are written in. A scenario checks, and stops at the first check that does not hold.

address=192.168.99.$machine

report() {
	echo "$nonce $*" >"$reports"
}

# fail WHY: ends the scenario.
fail() {
	echo "FAILED: $*"
	echo "$*" >/run/reason
	exit 1
}

# skip WHY: ends the scenario, which cannot be run here.
skip() {
	echo "$*" >/run/reason
	exit 77
}

# check WHAT COMMAND...: the command has to succeed.
check() {
	what=$1
	shift
	"$@" || fail "$what: \`$*\` ended with $?"
	report CHECK "$what"
}

# check_not WHAT COMMAND...: the command has to fail.
check_not() {
	what=$1
	shift
	if "$@"; then fail "$what: \`$*\` succeeded"; fi
	report CHECK "$what"
}

# wait_for SECONDS WHAT COMMAND...: the command has to succeed in the end. The time is no measure: the
# machine is emulated, and may be slow.
wait_for() {
	left=$(($1 * 5))
	what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		left=$((left - 1))
		[ $left -gt 0 ] || fail "$what: not within the time"
		usleep 200000
	done
	report CHECK "$what"
}

# measure NAME VALUE UNIT
measure() {
	report MEASURE "$*"
}

# without_module NAME: unloads it, and only it, where it is loaded.
without_module() {
	[ ! -d "/sys/module/$1" ] || rmmod "$1"
}

# says WHAT PATTERN COMMAND...: the command succeeds, and prints a line like the pattern.
says() {
	what=$1 pattern=$2
	shift 2
	"$@" >/run/said 2>&1 || {
		ended=$?
		cat /run/said
		fail "$what: \`$*\` ended with $ended"
	}
	grep -E -q "$pattern" /run/said || {
		cat /run/said
		fail "$what: \`$*\` prints nothing like '$pattern'"
	}
	report CHECK "$what"
}

# on_second COMMAND...: in a shell of the second machine that knows lib.sh and target-lunar.sh; its output and its exit
# code are the command's. What passes between the machines so, through files of the machine that runs both, is the
# scenario's way to hold both ends, and nothing of what is tested.
on_second() {
	asked=$(($(cat /run/asked 2>/dev/null || echo 0) + 1))
	echo $asked >/run/asked
	echo "$*" >/out/second/new
	mv /out/second/new /out/second/ask.$asked
	left=600
	until [ -e /out/second/answer.$asked ]; do
		left=$((left - 1))
		[ $left -gt 0 ] || fail "the second machine has not done within the time: $*"
		usleep 100000
	done
	cat /out/second/said.$asked
	return "$(cat /out/second/answer.$asked)"
}
