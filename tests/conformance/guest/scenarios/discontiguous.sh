#: buffers in many pieces with gaps between them, registered, with 255 scatter entries
#: targets lio lunar
#: limit 180
# What blktests' srp/013 looks at.
. /guest/initiator.sh

target_start
login cmd_sg_entries=255
disk
pieces "in pages"
logout
target_stop
