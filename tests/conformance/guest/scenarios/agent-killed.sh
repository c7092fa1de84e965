#: the agent is killed and started again under load, twice: no error, nothing lost
#: targets lunar
#: limit 300
. /guest/initiator.sh

killed_under_load agent_kill agent_start 5
