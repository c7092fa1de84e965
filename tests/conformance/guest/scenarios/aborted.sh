#: reads and writes are aborted in the middle of their RDMA: the answer comes when nothing moves any more
#: targets lunar
#: limit 120
. /guest/initiator.sh

target_start
check "twelve aborts in the middle" srp-initiator $service $ioc_guid abort
target_stop
