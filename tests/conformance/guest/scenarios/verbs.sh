#: the provider over libibverbs does what its trait says, on soft RoCE
#: limit 120

check "the provider's own tests pass" verbs-selftest rxe0 $address
