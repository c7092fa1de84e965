#: the guest boots, soft RoCE is up, and RDMA reaches this machine's own address
#: limit 120

port_is_active() {
	ibv_devinfo -d rxe0 | grep -q 'state:.*PORT_ACTIVE'
}
wait_for 20 "the port of rxe0 is active" port_is_active

rping -s -a "$address" -C 10 &
server=$!
sleep 1
check "rping reaches the own address over RDMA/CM" rping -c -a "$address" -C 10
wait $server
