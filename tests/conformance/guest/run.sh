# Runs what the kernel's command line asks for, reports on a line of its own, and powers off.
# The console gets what the scenarios print; the reports begin with the nonce of this run.

for word in $(cat /proc/cmdline); do
	case $word in
	lunar.nonce=*) nonce=${word#*=} ;;
	lunar.reports=*) reports=/dev/${word#*=} ;;
	lunar.run=*) run=${word#*=} ;;
	lunar.shell=*) shell=/dev/${word#*=} ;;
	esac
done
export nonce reports
stty -F "$reports" raw -echo

report() {
	echo "$nonce $*" >"$reports"
}

# In a shell of its own, so that a scenario that fails can stop where it stands.
run_scenario() {
	name=$1
	target=
	case $name in *:*) target=${name%%:*} ;; esac
	rm -f /run/reason
	report BEGIN "$name"
	echo "=== $name"
	(
		. /guest/lib.sh
		[ -z "$target" ] || . "/guest/target-$target.sh"
		. "/guest/scenarios/${name#*:}.sh"
		# A check that does not hold has left before.
		exit 0
	)
	case $? in
	0) report PASS "$name" ;;
	77) report SKIP "$name" "$(cat /run/reason)" ;;
	*)
		for log in /out/lunar-*.log; do
			[ ! -e "$log" ] || { echo "--- the end of $log" && tail -n 12 "$log"; }
		done
		echo "--- what the kernel logged last"
		dmesg | tail -n 12
		report FAIL "$name" "$(cat /run/reason 2>/dev/null || echo 'it ended without saying why')"
		;;
	esac
}

report READY
case $run in
'') ;;
command)
	cd /share 2>/dev/null || cd /
	sh /out/command
	report RAN $?
	;;
second) . /guest/second.sh ;;
*)
	for name in $(echo "$run" | tr ',' ' '); do
		run_scenario "$name"
	done
	;;
esac
report OVER
if [ -n "$shell" ]; then
	echo "A shell in the guest; the scenarios are in /guest. Leave it with exit, or end the machine with Ctrl-A x."
	setsid cttyhack sh -c '. /guest/lib.sh; exec sh' <"$shell" >"$shell" 2>&1
fi
sync
poweroff -f
