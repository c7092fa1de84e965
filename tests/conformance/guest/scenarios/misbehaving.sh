#: peers that overrun their credits, or vanish in the middle of RDMA: they lose their channel, a nexus under load never notices
#: targets lunar
#: limit 180
. /guest/initiator.sh

# Dies of an abort.
vanishes() {
	srp-initiator $service $ioc_guid vanish >/run/vanish
	[ $? = 134 ] && grep -q 'in the middle' /run/vanish
}


target_start
login
disk
file_system
idle=$(resources)
load_in_turns
check "a peer that overruns its credits loses its channel" srp-initiator $service $ioc_guid overrun
wait_for 10 "the log says why" grep -q 'more commands than its request limit' /out/lunar-agent.log
check "and counts it" [ "$(shown credit_overruns)" = 1 ]
for round in 1 2; do
	check "a peer vanishes in the middle of RDMA" vanishes
done
still_loaded
load_is_enough
check_not "Linux's initiator noticed nothing" kernel_says 'reconnect|srp.*(failed|error|reset)'
same_resources "$idle"
file_system_is_clean
logout
target_stop
