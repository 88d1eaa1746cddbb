from pretraining.machine.memory import available_host_bytes


def test_available_memory_is_read() -> None:
    assert 10**8 < available_host_bytes() < 10**14
