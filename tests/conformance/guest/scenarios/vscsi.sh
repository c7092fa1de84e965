#: Linux's ibmvscsi finds its disks, reads and writes through resets, aborts, migration, a killed server and its reload
#: partition
#: limit 350
. /guest/partition.sh

# Its default looks at 256 targets, at three commands each.
client_loaded max_id=4
disk 1
disk
check "the client met Lunar" kernel_says 'host partition lunar \(1\), OS 3, max io 1048576'
check "the client asked for what only a server of that kind has" kernel_says 'Client reserve enabled'
says "INQUIRY" 'LUNAR' sg_inq "$generic"
says "READ CAPACITY" 'Last LBA=1048575' sg_readcap "$generic"
says "REPORT LUNS" 'Lun list length = 16' sg_luns "$generic"
transfers "at first"

kernel_is_heard
check "reset of the device" sg_reset --device "$generic"
check "the kernel saw it" kernel_says 'resetting device'
transfers "after a reset of the device"

kernel_is_heard
check "reset of the host" sg_reset --host "$generic"
check "the client logged in again" kernel_says 'SRP_LOGIN succeeded'
transfers "after a reset of the host"

kernel_is_heard
ask refusals
wait_for 60 "a refused H_SEND_CRQ is tried again" reads_and_kernel_says 'Receive queue closed, will retry'
transfers "after H_SEND_CRQ was refused"
check_not "no error came of it" kernel_says 'error'

kernel_is_heard
echo 5 >/sys/block/${disk#/dev/}/device/timeout
ask lost command
wait_for 120 "a lost command is aborted and tried again" reads_and_kernel_says 'successfully aborted'
transfers "after an abort"

kernel_is_heard
ask migration
wait_for 60 "the client is told of a migration" kernel_says 'Re-enabling adapter'
wait_for 60 "the client logs in again" kernel_says 'SRP_LOGIN succeeded'
transfers "after a migration"

kernel_is_heard
transfer if 2048 512 &
load=$!
sleep 1
check "there is load" kill -0 $load
ask server killed
wait_for 60 "the client is told" kernel_says 'Partner adapter not ready'
check_not "what was under way fails" wait $load
check_not "nothing can be read" transfer if 8 1
ask server started
wait_for 60 "the new server sends INIT" kernel_says 'partner initialized'
wait_for 60 "the client logs in at it" kernel_says 'SRP_LOGIN succeeded'
transfers "with another server"

client_unloaded
client_loaded max_id=4
disk
transfers "after a reload"
