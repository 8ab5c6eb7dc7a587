"""x"""
import sys
def test_a(project):
    project.matrix("clean","blur")
    import time
    t=time.time()
    r=project.run("--mae-run","run","-v")
    print(project.log, project.rows().keys(), time.time()-t)
    t=time.time()
    r=project.run("--mae-run","run2", "--durations=5")
    print(time.time()-t)
    assert 1
