#: libiscsi's SCSI suite through /dev/sg, and its MultipathIO through two: no test fails, none is lost
#: targets lunar
#: limit 900
# What the numbers are made of, and why each test is skipped that is: docs/conformance.md.
. /guest/initiator.sh

# Tests that pass without a word of having been skipped. Fewer is a failure; a test gained raises it.
least=154
least_extended_copy=6
least_multipath=2

# suite NAME TESTS LEAST DEVICE...: runs the tests, and counts.
suite() {
	name=$1 chosen=$2 at_least=$3
	shift 3
	# Its exit code says whether a test failed, which the log says too.
	iscsi-test-cu --dataloss -v -t "$chosen" "$@" >"/out/libiscsi-$name.log" 2>&1
	check "$name came to its end" grep -q '^Elapsed time' "/out/libiscsi-$name.log"
	# CUnit takes a skipped test for a passed one. A test is all lines from its name to the next one's.
	awk '
		function over() {
			if (test == "") return
			tests++
			if (failed) { failures++; print test >"/run/failed" }
			else if (skipped) skips++
			else passes++
			test = ""
		}
		/^Suite: / { over(); suite = $2 }
		/^  Test: / { over(); test = suite "." $2; failed = skipped = 0 }
		/^Run Summary:/ { over() }
		/FAILED/ { failed = 1 }
		/\[SKIPPED\]/ { skipped = 1 }
		END { print tests + 0, passes + 0, skips + 0, failures + 0 }
	' "/out/libiscsi-$name.log" >/run/counts
	read -r tests passes skips failures </run/counts
	measure "$name/tests" "$tests" tests
	measure "$name/passed" "$passes" tests
	measure "$name/skipped" "$skips" tests
	measure "$name/failed" "$failures" tests
	[ "$failures" = 0 ] || fail "of $tests tests of $name these failed: $(tr '\n' ' ' </run/failed)"
	check "$at_least tests of $name pass" [ "$passes" -ge "$at_least" ]
}

# Thin, so that what unmaps has something to unmap. Physical blocks as large as logical ones, because
# GetLBAStatus.UnmapSingle takes the one for the other.
disk_attributes='thin_provisioned 1
		lb_per_pb_exp 0'
target_start
# ExtendedCopy.Simple reads 1 MiB at once into memory of many pieces; ib_srp's defaults stop at 512 KiB and 12.
login initiator_ext=0000000000000001,max_sect=2048,cmd_sg_entries=255,allow_ext_sg=1,sg_tablesize=1024
disk
first=$generic first_host=$host
login initiator_ext=0000000000000002
disk
# First, because CompareAndWrite takes a block for zero that it does not write: the disk has to be new.
suite multipath ALL.MultipathIO $least_multipath "$first" "$generic"
logout "$host"
# ExtendedCopy alone begins with an E, and comes last: it leaves the status of a copy that failed under list
# identifier 1, and ReceiveCopyResults.CopyStatus wants nothing to be known of that. A status is kept for ten
# seconds; what comes out is not to hang on how fast the guest is.
suite all 'ALL.[!E]*' $least "$first"
suite extended-copy ALL.ExtendedCopy $least_extended_copy "$first"
# What needs a medium that can be taken out, which the disk has from now on. One after the other, because a medium
# that comes back is a unit attention, which the suite takes when it starts.
disk_attributes="$disk_attributes
		removable 1"
reconfigured
suite prevent-allow ALL.PreventAllow.Simple 1 "$first"
suite start-stop 'ALL.StartStopUnit.[!S]*' 2 "$first"
suite no-media ALL.NoMedia 1 "$first"
logout "$first_host"
target_stop
