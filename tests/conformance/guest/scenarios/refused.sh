#: garbage, another port and too long IUs in a login: the code on the wire, and the reason in words in the log
#: targets lunar
#: limit 120
# What SCST's srpt checklist calls login rejects.
. /guest/initiator.sh

# refused WHAT CODE WORDS: a login that is WHAT is rejected with CODE, and the log says WORDS.
refused() {
	check "a login of $1 is rejected with $2" [ "$(srp-initiator $service $ioc_guid $1)" = "$2" ]
	wait_for 10 "the log says: $3" grep -q "$3" /out/lunar-agent.log
}

target_start
before=$(resources)
refused garbage 0x10000 'does the peer speak SRP?'
refused elsewhere 0x10003 'correct id_ext and ioc_guid at the initiator'
refused large 0x10002 'it asked for IUs of 9000 bytes; the limit is 8320: lower cmd_sg_entries at the initiator, or raise srp_max_req_size'
same_resources "$before"
target_stop
