#: the guest boots, soft RoCE is up, and RDMA reaches the own address, fio sees damage
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

# What the other scenarios rely on: a block that is not as it was written is found.
damage() {
	fio --name=damage --eta=never --thread --filename=/tmp/damage --rw=write --bs=4k --size=256k \
		--verify=crc32c --verify_fatal=1 "$@"
}
check "fio writes" damage --do_verify=0
check "fio finds what it wrote" damage --verify_only
dd if=/dev/urandom of=/tmp/damage bs=1 seek=100000 count=4 conv=notrunc
check_not "fio takes damage for what it wrote" damage --verify_only
