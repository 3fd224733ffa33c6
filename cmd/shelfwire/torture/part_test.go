package torture

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// running is a part that has been started: one of deploy/embedded's servers, or a process.
type running interface {
	Done() <-chan struct{}
	Kill()
	Stop() error
	Log() string
}

// part keeps one part running: it starts it, starts it again when it has ended by itself, and kills it when told to.
type part struct {
	name   string
	launch func(ctx context.Context) (running, error)
	kills  chan strike
	cancel context.CancelFunc
	done   chan struct{}

	mu sync.Mutex
	// up is closed while the part runs, and replaced when it goes down.
	up     chan struct{}
	killed int
	frozen int
	// exits are the ends that nobody asked for, with what the part had to say.
	exits []string
	stop  error
	last  running
}

func newPart(name string, launch func(context.Context) (running, error)) *part {
	return &part{name: name, launch: launch, kills: make(chan strike), done: make(chan struct{}), up: make(chan struct{})}
}

// begin keeps the part running until end is called.
func (p *part) begin(ctx context.Context) {
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(p.done)
		p.supervise(ctx)
	}()
}

// end stops the part cleanly, and returns an error when it was not clean.
func (p *part) end() error {
	p.cancel()
	<-p.done
	if p.stop != nil {
		return fmt.Errorf("%s: %w", p.name, p.stop)
	}
	return nil
}

// wait returns when the part runs.
func (p *part) wait(ctx context.Context) error {
	p.mu.Lock()
	up := p.up
	p.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s does not start: %w", p.name, context.Cause(ctx))
	}
}

// The pause before a part is started again that has ended by itself.
const shortestPause, longestPause = 100 * time.Millisecond, 2 * time.Second

func (p *part) supervise(ctx context.Context) {
	pause := shortestPause
	for ctx.Err() == nil {
		began := time.Now()
		r, err := p.launch(ctx)
		if err != nil {
			if ctx.Err() == nil {
				p.note(fmt.Sprintf("start: %v", err))
			}
			rest(ctx, pause)
			pause = min(2*pause, longestPause)
			continue
		}
		p.rise(r)
		if p.watch(ctx, r) {
			continue
		}
		if time.Since(began) > 5*time.Second {
			pause = shortestPause
		}
		rest(ctx, pause)
		pause = min(2*pause, longestPause)
	}
}

// watch returns when the part runs no more, and whether it may be started again without a pause.
func (p *part) watch(ctx context.Context, r running) bool {
	for {
		select {
		case <-ctx.Done():
			p.stop = r.Stop()
			return true
		case s := <-p.kills:
			if s.freeze {
				p.freeze(ctx, r, s)
				continue
			}
			r.Kill()
			p.fall()
			p.mu.Lock()
			p.killed++
			p.mu.Unlock()
			close(s.dead)
			rest(ctx, s.down)
			return true
		case <-r.Done():
			p.fall()
			how := "ended by itself"
			if run, ok := r.(*process); ok {
				how += fmt.Sprintf(" with %d", run.cmd.ProcessState.ExitCode())
			}
			p.note(how + ": " + tail(r.Log(), 1500))
			return false
		}
	}
}

// freeze stops the process for a while. Of a server with processes of its own, only the first one stops.
func (p *part) freeze(ctx context.Context, r running, s strike) {
	defer close(s.dead)
	var pid int
	switch run := r.(type) {
	case *process:
		pid = run.cmd.Process.Pid
	case interface{ PID() int }:
		pid = run.PID()
	default:
		return
	}
	p.mu.Lock()
	p.frozen++
	p.mu.Unlock()
	_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended by itself
	rest(ctx, s.down)
	_ = syscall.Kill(pid, syscall.SIGCONT)
}

// kill ends the part as a crash would. It returns when the part is dead, or when a frozen one has woken up again; it
// comes back by itself.
func (p *part) kill(ctx context.Context, s strike) error {
	s.dead = make(chan struct{})
	select {
	case p.kills <- s:
		<-s.dead
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// quit has a program of Go end with a print of where all of its goroutines stand.
func (p *part) quit() {
	p.mu.Lock()
	run, ok := p.last.(*process)
	p.mu.Unlock()
	if ok {
		_ = run.cmd.Process.Signal(syscall.SIGQUIT)
		rest(context.Background(), time.Second)
	}
}

func (p *part) rise(r running) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = r
	close(p.up)
}

func (p *part) fall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up = make(chan struct{})
}

func (p *part) note(exit string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exits = append(p.exits, time.Now().Format("15:04:05.000 ")+exit)
}

// account is what has happened to the part.
func (p *part) account() (killed, frozen int, exits []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killed, p.frozen, p.exits
}

// rest waits, and reports whether ctx still stands.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}
