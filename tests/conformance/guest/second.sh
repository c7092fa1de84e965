# What the second of two machines does: what the first asks for with on_second, one after the other, until the machine
# is ended.

next=1
while :; do
	if [ ! -e /out/second/ask.$next ]; then
		usleep 100000
		continue
	fi
	echo "=== $(cat /out/second/ask.$next)"
	(
		. /guest/lib.sh
		. /guest/target-lunar.sh
		. /out/second/ask.$next
	) >/out/second/said.$next 2>&1
	echo $? >/out/second/new-answer
	cat /out/second/said.$next
	mv /out/second/new-answer /out/second/answer.$next
	next=$((next + 1))
done
