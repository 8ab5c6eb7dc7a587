def test_a(project):
    project.matrix("clean")
    with (project.path / "conftest.py").open("a") as file:
        file.write('''

@model_fixture
def borrowed():
    from networks import mean_colour, note

    yield mean_colour("borrowed")
    raise OSError("the disk is gone")


@model_fixture
def second():
    from networks import mean_colour, note

    yield mean_colour("second")
    yield 2
''')
    project.run("-v")
    project.run("-v", "-k", "second")
    assert 0
