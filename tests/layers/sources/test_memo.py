from layers.sources.memo import LIMIT, forget, kept


def test_a_value_is_made_once_and_what_is_used_is_kept_longest():
    made = []

    def get(key):
        return kept(("test_kept", key), lambda: made.append(key) or key)

    assert [get(0), get(0)] == [0, 0] and made == [0]
    for key in range(1, LIMIT):
        get(key)
        get(0)
    get(LIMIT)
    assert get(0) == 0 and made == list(range(LIMIT + 1))
    get(1)
    assert made[-1] == 1
    forget(("test_kept", 1))
    forget(("test_kept", "never there"))
    assert get(1) == 1 and made[-2:] == [1, 1]


def test_what_could_not_be_made_is_tried_again():
    answers = iter([1, 0])
    for expected in (None, 1):
        try:
            assert kept(("test_kept", "again"), lambda: 1 // (1 - next(answers))) == expected
        except ZeroDivisionError:
            assert expected is None
    forget(("test_kept", "again"))
