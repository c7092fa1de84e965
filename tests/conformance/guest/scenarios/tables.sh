#: buffers that are not registered: a descriptor for every piece, in the IU and in tables outside it
#: targets lunar
#: limit 300
# Not against LIO: Linux 6.1's ib_srpt dies of it.
. /guest/initiator.sh

# descriptors OPTIONS PARAMETERS...: logs in with OPTIONS and ib_srp's PARAMETERS, and transfers.
descriptors() {
	options=$1
	shift
	wait_for 20 "ib_srp unloads" without_module ib_srp
	check "ib_srp loads with $*" modprobe ib_srp "$@"
	login "$options"
	disk
	pieces "with $options"
	logout
}

target_start
descriptors cmd_sg_entries=255 never_register=1
descriptors cmd_sg_entries=1,allow_ext_sg=1,sg_tablesize=128 never_register=1 indirect_sg_entries=255
wait_for 20 "ib_srp unloads" without_module ib_srp
target_stop
