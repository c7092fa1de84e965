# What scenarios are written in. A scenario checks, and stops at the first check that does not hold.

address=192.168.99.1

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
