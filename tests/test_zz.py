import json
def test_a(project):
    project.matrix("blur", models=("bright", "dim"))
    project.write("wrong.json", json.dumps({"bright-defocus_blur-12.00": None}))
    r = project.pytester.runpytest_subprocess("-k", "defocus", "--mae-run", "run", "--tb=no", "-q")
    print([line for line in project.log if not line.startswith("forward")])
    assert 0
