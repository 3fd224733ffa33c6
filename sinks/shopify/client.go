package shopify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/admin"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify/budget"
)

// Config configures the client of all shops.
type Config struct {
	// Shops are by the name that documents use. Required.
	Shops map[string]ShopConfig
	// Budget keeps the rate buckets that all processes share. Required.
	Budget budget.Store
	// Holder names this process in the buckets, uniquely among all that run. Required.
	Holder string
	// RoundTripper sends the requests. Default: a transport of its own that keeps a connection to each of any number of
	// shops. It must not follow redirects.
	RoundTripper http.RoundTripper
	// Timeout is how long one request may take; the caller's lease must outlast it. Default 15 s.
	Timeout time.Duration
	// MaxMutations and MaxCreations bound what one request carries beside the cost cap, because Shopify executes
	// aliases one after the other and gives up after about 10 s. More means fewer round trips and a later first
	// result. Defaults 50 and 8.
	MaxMutations, MaxCreations int
	// StaleWait is how long a stock level waits when the shop's "available" is not what was left there: time for the
	// shop's own sales to reach the database. Zero writes the document's value at once.
	StaleWait time.Duration
	// Logger reports decisions: served versions, definitions created, conflicts of stock. Default: discard.
	Logger *slog.Logger
	// Observe is told of every exchange, for metrics. Optional; it must not block.
	Observe func(Exchange)
}

// ShopConfig configures one shop.
type ShopConfig struct {
	// URL is the shop's address, as "https://acme.myshopify.com". Required.
	URL string
	// Token returns the Admin API access token; it is asked before every request, so that it may change. Required.
	Token func(ctx context.Context) (string, error)
	// APIVersion defaults to the version of the embedded schema.
	APIVersion string
	// Namespace and Key name the metafield that carries the product id. Defaults "shelfwire" and "product_id".
	Namespace, Key string
}

// Exchange is one request with its answer, for metrics.
type Exchange struct {
	Shop   string
	Fields []string // root fields
	Lane   work.Lane
	// Requested is the predicted cost in points; Held is what the shop held back for it, which is the same unless the
	// formula has changed (0 where it did not say); Actual is what it charged in the end, negative where it did not say.
	Requested int
	Held      float64
	Actual    float64
	// Products is how many products share the request; 0 for reads of settings.
	Products int
	// Category is empty for a success of the request as such.
	Category string
	Duration time.Duration
	// Waited is how long the request stood in the budget's queue.
	Waited time.Duration
	// Available is what the shop reported to be left; negative where it did not say.
	Available float64
}

// Shops is the client of all configured shops. It is safe for concurrent use.
type Shops struct {
	cfg   Config
	http  *http.Client
	shops map[string]*shop
}

// shop is the client of one shop.
type shop struct {
	name     string
	cfg      ShopConfig
	endpoint string
	limiter  *budget.Limiter

	mu       sync.Mutex
	settings *settings
	// noVariants is until when the shop is not asked for more variants, as it has reached its daily limit.
	noVariants time.Time
	// learn serialises reads of the settings.
	learn chan struct{}
	// told remembers the served version that was reported, so that it is logged once.
	told string
}

// New checks the configuration and returns the client. It connects to nothing.
func New(cfg Config) (*Shops, error) {
	if cfg.Budget == nil || cfg.Holder == "" {
		return nil, errors.New("shopify: Budget and Holder are required")
	}
	if _, err := templates(); err != nil {
		return nil, err
	}
	if _, err := admin.Schema(); err != nil {
		return nil, err
	}
	cfg.defaults()
	s := &Shops{cfg: cfg, shops: map[string]*shop{}, http: &http.Client{
		Transport: cfg.RoundTripper,
		// The token goes to no other host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for name, c := range cfg.Shops {
		sh, err := newShop(name, c, cfg)
		if err != nil {
			return nil, err
		}
		s.shops[name] = sh
	}
	return s, nil
}

func (c *Config) defaults() {
	if c.RoundTripper == nil {
		c.RoundTripper = newTransport()
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	if c.MaxMutations == 0 {
		c.MaxMutations = 50
	}
	if c.MaxCreations == 0 {
		c.MaxCreations = 8
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(Exchange) {}
	}
}

// newTransport is http.DefaultTransport without its bound of 100 idle connections, beyond which nearly every request to
// one of a thousand shops would begin with a handshake. The caller's lines bound how many a shop has; an idle one is
// closed after 90 s.
func newTransport() http.RoundTripper {
	t, ok := http.DefaultTransport.(*http.Transport)
	if !ok { // somebody has put another in its place, and means it
		return http.DefaultTransport
	}
	t = t.Clone()
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, 32
	return t
}

func newShop(name string, c ShopConfig, cfg Config) (*shop, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fmt.Errorf("shop %s: %q is no address of a shop", name, c.URL)
	}
	if c.Token == nil {
		return nil, fmt.Errorf("shop %s: no source of access tokens", name)
	}
	if c.APIVersion == "" {
		c.APIVersion = admin.Version
	}
	if c.Namespace == "" {
		c.Namespace = "shelfwire"
	}
	if c.Key == "" {
		c.Key = "product_id"
	}
	return &shop{
		name: name, cfg: c, learn: make(chan struct{}, 1),
		endpoint: strings.TrimRight(c.URL, "/") + "/admin/api/" + c.APIVersion + "/graphql.json",
		limiter: budget.NewLimiter(budget.Config{
			Shop: name, Holder: cfg.Holder, Store: cfg.Budget, TTL: 2 * cfg.Timeout,
		}),
	}, nil
}

// Plan is the package's Plan, so that one value can plan and send.
func (s *Shops) Plan(p work.Push) work.Plan { return Plan(p) }

// Run gives points back that nobody uses, until ctx ends; then it gives back all.
func (s *Shops) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			for _, sh := range s.shops {
				if err := sh.limiter.Return(grace); err != nil {
					s.cfg.Logger.Warn("points were not given back; they return when the lease ends", "shop", sh.name, "error", err)
				}
			}
			return nil
		case <-tick.C:
		}
		for _, sh := range s.shops {
			if err := sh.limiter.ReturnIdle(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Warn("idle points were not given back", "shop", sh.name, "error", err)
			}
		}
	}
}

// Bucket returns a shop's rate bucket as this process saw it last; zero for an unknown shop.
func (s *Shops) Bucket(shop string) work.Bucket {
	if sh := s.shops[shop]; sh != nil {
		return sh.limiter.Bucket()
	}
	return work.Bucket{}
}

// Probe asks a shop for its sales channels, to see whether it answers: nil when it does.
func (s *Shops) Probe(ctx context.Context, name string) error {
	sh := s.shops[name]
	if sh == nil {
		return fmt.Errorf("probe: no shop %s is configured", name)
	}
	if _, f := s.query(ctx, sh, work.LaneLive, []*op{newOp("publications", map[string]any{})}); f != nil {
		return fmt.Errorf("probe shop %s: %w", name, f)
	}
	return nil
}

// maxAnswer bounds an answer's body; the largest page that is asked for has a few MB.
const maxAnswer = 64 << 20

// post sends one request and reads its answer. The answer's whole failure says what went wrong, if anything did.
func (s *Shops) post(ctx context.Context, sh *shop, body []byte) *answer {
	// A caller that stops no longer waits for points, but a request that has begun is awaited: cutting it would only
	// leave its outcome unknown.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
	defer cancel()
	token, err := sh.cfg.Token(ctx)
	if err != nil {
		f := classifyTransport(err)
		f.unanswered = false
		f.message = "No access token for the shop: " + cut(err.Error(), 300)
		return &answer{whole: f}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, sh.endpoint, bytes.NewReader(body))
	if err != nil {
		return &answer{whole: classifyTransport(err)}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("X-Shopify-Access-Token", token)
	resp, err := s.http.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok { // its text carries the address, not the reason
			err = u.Err
		}
		return &answer{whole: classifyTransport(err)}
	}
	defer func() { _ = resp.Body.Close() }() // what was read counts
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil && resp.StatusCode == http.StatusOK:
		return &answer{whole: classifyTransport(err)}
	case len(raw) > maxAnswer:
		return &answer{whole: garbage(raw)}
	}
	a := readAnswer(resp.StatusCode, resp.Header, raw)
	s.checkVersion(sh, a)
	return a
}

// checkVersion reports once when another version than asked for serves the shop: a retired one falls forward.
func (s *Shops) checkVersion(sh *shop, a *answer) {
	if a.version == "" || a.version == sh.cfg.APIVersion {
		return
	}
	sh.mu.Lock()
	told := sh.told == a.version
	sh.told = a.version
	sh.mu.Unlock()
	if !told {
		s.cfg.Logger.Warn("the shop is served by another API version than asked for",
			"shop", sh.name, "asked", sh.cfg.APIVersion, "served", a.version)
	}
}

// maxLimited is how often one request is sent again because the shop asks for patience. The budget makes even one
// rare; a shop that throttles on and on is left to the caller, who lets its products wait and absorb changes.
const maxLimited = 8

// maxPause is the longest wait that a request stands out by itself; the products of a longer one are parked.
const maxPause = 5 * time.Second

// call sends ops as one request when the budget allows, and again while the shop only asks for patience. intend is
// called before the first sending of something that writes; nil for reads.
func (s *Shops) call(ctx context.Context, sh *shop, lane work.Lane, ops []*op, intend func(context.Context) error, products int) *answer {
	query, variables, err := compose(ops)
	if err != nil {
		return &answer{whole: broken(err)}
	}
	body, err := json.Marshal(map[string]any{"query": query, "variables": variables})
	if err != nil {
		return &answer{whole: broken(err)}
	}
	points, names := 0, make([]string, 0, len(ops))
	for _, o := range ops {
		points += o.points
		names = append(names, o.document)
	}
	for attempt := 0; ; attempt++ {
		start := time.Now()
		if err := sh.limiter.Acquire(ctx, lane, float64(points)); err != nil {
			return &answer{whole: unaffordable(err)}
		}
		waited := time.Since(start)
		if a := s.admit(ctx, intend); a != nil {
			s.settleBudget(ctx, sh, points, a)
			return a
		}
		start = time.Now()
		a := s.post(ctx, sh, body)
		s.settleBudget(ctx, sh, points, a)
		if a.undefined() {
			sh.forget()
		}
		s.observe(sh, names, lane, points, products, time.Since(start), waited, a)
		if !a.whole.limited() || a.whole.retryAfter > maxPause || attempt >= maxLimited || ctx.Err() != nil {
			return a
		}
		if !pause(ctx, a.whole.retryAfter) {
			return a
		}
	}
}

// admit puts a request's intent on record; without it nothing may go out.
func (s *Shops) admit(ctx context.Context, intend func(context.Context) error) *answer {
	if intend == nil {
		return nil
	}
	if err := intend(ctx); err != nil {
		return &answer{whole: unsent("The request's intent could not be recorded: " + cut(err.Error(), 300))}
	}
	return nil
}

func (s *Shops) observe(sh *shop, names []string, lane work.Lane, points, products int, took, waited time.Duration, a *answer) {
	e := Exchange{
		Shop: sh.name, Fields: names, Lane: lane, Requested: points, Held: a.requested, Actual: a.actual, Products: products,
		Duration: took, Waited: waited, Available: -1,
	}
	if a.whole != nil {
		e.Category = string(a.whole.category)
	}
	if a.status != nil {
		e.Available = a.status.Available
	}
	s.cfg.Observe(e)
}

// settleBudget returns what the request did not cost.
func (s *Shops) settleBudget(ctx context.Context, sh *shop, points int, a *answer) {
	actual := float64(points) // where the shop does not say, the whole is gone
	switch {
	case a.whole != nil && (a.whole.limited() || a.whole.reason == reasonUnsent):
		actual = 0
	case a.actual >= 0:
		actual = a.actual
	}
	if err := sh.limiter.Settle(context.WithoutCancel(ctx), float64(points), actual, a.status); err != nil {
		s.cfg.Logger.Warn("the rate bucket was not updated", "shop", sh.name, "error", err)
	}
}

// pause waits before a repeated request; false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		d = 100 * time.Millisecond // the bucket was lowered by the answer: its queue does the waiting
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
