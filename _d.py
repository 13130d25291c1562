import time, os, psutil
from fscl.runs import workers
def make(x):
    return abs
if __name__=="__main__":
    w=workers.StandingWorkers(make,None,2)
    print(w([1,-2,3]))
    for wk,end in w._idle:
        os.kill(wk.pid,9)
    time.sleep(1)
    for wk,end in w._idle:
        print(wk.is_alive(), wk.exitcode, end.poll())
        try: print("send", end.send(-5))
        except OSError as e: print(repr(e))
