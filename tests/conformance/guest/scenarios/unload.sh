#: ib_srp is unloaded with two sessions open, and loaded again
#: targets lio lunar
#: limit 180
. /guest/initiator.sh

target_start
for round in 1 2 3; do
	login
	login initiator_ext=0000000000000002
	disk
	check "the disk can be read" dd if="$disk" of=/dev/null bs=1M count=4 iflag=direct
	wait_for 30 "ib_srp unloads with sessions open" without_module ib_srp
	check "no session is left" [ -z "$(srp_hosts)" ]
done
target_stop
