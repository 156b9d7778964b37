// Package temporald runs the real Temporal server inside this process, with
// its state in one SQLite file, or on a Postgres server, as a larger installation
// has it. It exists so that a developer and the end-to-end tests have the genuine
// server without Docker or a download, and it is the reason why the stack is a
// module of its own: the server alone brings some two hundred modules.
package temporald

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/membership/static"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
	sqliteschema "go.temporal.io/server/schema/sqlite"
	"go.temporal.io/server/temporal"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// Defaults of Config.
const (
	DefaultNamespace = "default"
	DefaultRetention = 7 * 24 * time.Hour
	// DefaultPostgresShards lets that many transactions of history run at a time.
	DefaultPostgresShards = 4
	// maxShards keeps a slip of the finger from starting a queue processor for
	// each of a million.
	maxShards = 4096
)

const (
	host = "127.0.0.1"
	// clusterName is written into the database; it means nothing but must not
	// change between two starts.
	clusterName = "active"
	// The names by which the configuration refers to the two stores.
	mainStore       = "main"
	visibilityStore = "visibility"
)

// Config says where the server listens and keeps its state.
type Config struct {
	// Port of the gRPC frontend on 127.0.0.1. It must be free: the server ends
	// the whole process on a busy one, so Start looks first.
	Port int
	// Database is the path of the SQLite file, created with its schema if
	// absent. Empty keeps everything in memory.
	Database string
	// Postgres, instead of Database, is the URL of a database on a Postgres
	// server: postgres://user:password@host:port/name. Visibility goes to a second
	// one, name_visibility. Both are created with their schemas if absent. What the
	// URL leaves out comes from the PG* variables of the environment; sslmode is
	// "disable" unless the URL names another.
	Postgres string
	// Shards is the number of history shards, on Postgres only: with SQLite, which
	// has one writer, it is 1. It cannot change once the database is there. Default:
	// what the database has, DefaultPostgresShards for a new one.
	Shards int
	// LogFile receives the server's warnings and errors. It is noisy while
	// starting and stopping, hence not the terminal.
	LogFile string
	// Namespaces are created if absent. Default: DefaultNamespace alone.
	Namespaces []string
	// Retention of closed workflows in them, at least a day; used only when a
	// namespace is created. Default: DefaultRetention.
	Retention time.Duration
	// NamespaceRPS is how many requests a second a namespace may make before it is
	// refused more with RESOURCE_EXHAUSTED. Default: the server's, some thousands.
	NamespaceRPS int
}

// SearchAttributes are those the executor sets on every job. The executor
// registers them as well; having them from the first moment spares a new
// namespace the delay until they are known everywhere.
func SearchAttributes() map[string]enumspb.IndexedValueType {
	return map[string]enumspb.IndexedValueType{
		"JobRole":          enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		"JobUser":          enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		"JobProject":       enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		"JobNodptWorkflow": enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		"JobModel":         enumspb.INDEXED_VALUE_TYPE_KEYWORD,
	}
}

// Server is a running Temporal server.
type Server struct {
	server  temporal.Server
	address string
}

// Start runs a server and returns when it serves its namespaces. The ports of
// its inner services are taken from ports.
func Start(ctx context.Context, cfg Config, ports *proc.Ports) (*Server, error) {
	if len(cfg.Namespaces) == 0 {
		cfg.Namespaces = []string{DefaultNamespace}
	}
	if cfg.Retention == 0 {
		cfg.Retention = DefaultRetention
	}
	if !proc.IsFree(ctx, cfg.Port) {
		return nil, fmt.Errorf("temporal server: port %d is busy", cfg.Port)
	}
	db, err := openStorage(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("temporal server: %w", err)
	}
	conf, hosts, err := serverConfig(ctx, cfg.Port, db, ports)
	if err != nil {
		return nil, fmt.Errorf("temporal server: %w", err)
	}
	server, err := temporal.NewServer(
		temporal.WithConfig(conf),
		temporal.ForServices(temporal.DefaultServices),
		temporal.WithStaticHosts(hosts),
		temporal.WithLogger(logger(cfg.LogFile)),
		temporal.WithAuthorizer(authorization.NewNoopAuthorizer()),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper {
			return authorization.NewNoopClaimMapper()
		}),
		temporal.WithDynamicConfigClient(tuning(cfg)),
	)
	if err != nil {
		return nil, fmt.Errorf("temporal server: %w", err)
	}
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("temporal server: %w", err)
	}
	s := &Server{server: server, address: proc.Loopback(cfg.Port)}
	if err := s.waitServing(ctx, cfg.Namespaces); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// Address is the host:port of the gRPC frontend.
func (s *Server) Address() string { return s.address }

// Stop drains and ends the server, which takes it a few seconds. The database
// is as safe without.
func (s *Server) Stop() error {
	if err := s.server.Stop(); err != nil {
		return fmt.Errorf("temporal server: %w", err)
	}
	return nil
}

// waitServing returns when the frontend answers for all namespaces.
func (s *Server) waitServing(ctx context.Context, namespaces []string) error {
	err := proc.Wait(ctx, func(ctx context.Context) error { return Serving(ctx, s.address, namespaces...) })
	if err != nil {
		return fmt.Errorf("temporal server: %w", err)
	}
	return nil
}

// Serving reports whether the server at an address answers for all namespaces;
// none means DefaultNamespace.
func Serving(ctx context.Context, address string, namespaces ...string) error {
	if len(namespaces) == 0 {
		namespaces = []string{DefaultNamespace}
	}
	c, err := client.NewLazyClient(client.Options{HostPort: address, Logger: quiet{}})
	if err != nil {
		return err
	}
	defer c.Close()
	for _, namespace := range namespaces {
		_, err := c.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: namespace})
		if err != nil {
			return fmt.Errorf("namespace %s is not served: %w", namespace, err)
		}
	}
	return nil
}

// storage is where the server keeps its state.
type storage struct {
	main, visibility *config.SQL
	shards           int
}

// openStorage makes sure that there is a database with its schema and the
// namespaces.
func openStorage(ctx context.Context, cfg Config) (storage, error) {
	var s storage
	var err error
	switch {
	case cfg.Shards < 0 || cfg.Shards > maxShards:
		err = fmt.Errorf("%d history shards: at least 1, at most %d", cfg.Shards, maxShards)
	case cfg.Postgres != "" && cfg.Database != "":
		err = errors.New("the state is either on Postgres or in a file")
	case cfg.Postgres != "":
		s, err = openPostgres(ctx, cfg.Postgres, cfg.Shards)
	case cfg.Shards > 1:
		err = errors.New("more than one history shard needs Postgres")
	default:
		s, err = openSQLite(cfg.Database)
	}
	if err != nil {
		return storage{}, err
	}
	return s, createNamespaces(s.main, cfg)
}

func openSQLite(database string) (storage, error) {
	db := &config.SQL{PluginName: sqliteplugin.PluginName}
	if database == "" {
		// The plugin sets up the schema of a database in memory by itself.
		db.DatabaseName = "memory" + strconv.FormatUint(rand.Uint64(), 36) //nolint:gosec // G404: a name, no secret
		db.ConnectAttributes = map[string]string{"mode": "memory", "cache": "shared"}
	} else {
		path, err := filepath.Abs(database)
		if err != nil {
			return storage{}, err
		}
		if err := createDatabase(path); err != nil {
			return storage{}, err
		}
		db.DatabaseName = uriPath(path)
		// Attributes that are no URI parameters of SQLite are taken as pragmas.
		// synchronous 1 is "normal": with a write-ahead log a crash of the process
		// loses nothing, and a crash of the machine at most the last transactions.
		db.ConnectAttributes = map[string]string{"mode": "rwc", "journal_mode": "wal", "synchronous": "1"}
	}
	return storage{main: db, visibility: db, shards: 1}, nil
}

// createNamespaces writes them into the database, where the server finds them
// with their search attributes when it starts. The functions are those for
// SQLite, but nothing in them is particular to it.
func createNamespaces(db *config.SQL, cfg Config) error {
	for _, name := range cfg.Namespaces {
		namespace, err := sqliteschema.NewNamespaceConfig(clusterName, name, false, SearchAttributes())
		if err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
		namespace.Detail.Config.Retention = durationpb.New(cfg.Retention)
		// An existing namespace is left as it is.
		if err := sqliteschema.CreateNamespaces(db, namespace); err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
	}
	return nil
}

// createDatabase writes a database with an empty schema, unless the file is
// there. It does so beside the file and renames it when complete, because a
// crash half-way would leave a file that looks set up and is not.
func createDatabase(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	// A fresh name each time: the plugin never closes a file it has opened.
	dir, err := os.MkdirTemp(filepath.Dir(path), "schema-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	fresh := filepath.Join(dir, "temporal.db")
	err = sqliteschema.SetupSchema(&config.SQL{
		PluginName:   sqliteplugin.PluginName,
		DatabaseName: uriPath(fresh),
		// Nothing to protect yet, so do not wait for the disk at each statement.
		ConnectAttributes: map[string]string{"mode": "rwc", "synchronous": "0"},
	})
	if err != nil {
		return fmt.Errorf("schema: %w", err)
	}
	return os.Rename(fresh, path)
}

// uriPath escapes a path for the file: URI that the plugin builds of it.
func uriPath(path string) string { return (&url.URL{Path: path}).EscapedPath() }

func serverConfig(ctx context.Context, frontend int, db storage, ports *proc.Ports) (*config.Config, map[primitives.ServiceName]static.Hosts, error) {
	services := map[string]config.Service{}
	hosts := map[primitives.ServiceName]static.Hosts{}
	for _, name := range []primitives.ServiceName{
		primitives.FrontendService, primitives.HistoryService, primitives.MatchingService, primitives.WorkerService,
	} {
		port := frontend
		if name != primitives.FrontendService {
			var err error
			if port, err = ports.Free(ctx); err != nil {
				return nil, nil, err
			}
		}
		services[string(name)] = config.Service{RPC: config.RPC{GRPCPort: port, BindOnIP: host}}
		hosts[name] = static.SingleLocalHost(proc.Loopback(port))
	}
	disabled := "disabled"
	conf := &config.Config{
		Global: config.Global{
			Membership: config.Membership{MaxJoinDuration: 30 * time.Second, BroadcastAddress: host},
		},
		Persistence: config.Persistence{
			DefaultStore:     mainStore,
			VisibilityStore:  visibilityStore,
			NumHistoryShards: int32(db.shards), //nolint:gosec // G115: at most maxShards, or an int32 of the database
			DataStores: map[string]config.DataStore{
				mainStore:       {SQL: db.main},
				visibilityStore: {SQL: db.visibility},
			},
		},
		ClusterMetadata: &cluster.Config{
			FailoverVersionIncrement: 10,
			MasterClusterName:        clusterName,
			CurrentClusterName:       clusterName,
			ClusterInformation: map[string]cluster.ClusterInformation{
				clusterName: {Enabled: true, InitialFailoverVersion: 1, RPCAddress: proc.Loopback(frontend)},
			},
		},
		DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
		Services:            services,
		PublicClient:        config.PublicClient{HostPort: proc.Loopback(frontend)},
	}
	conf.Archival.History.State = disabled
	conf.Archival.Visibility.State = disabled
	conf.NamespaceDefaults.Archival.History.State = disabled
	conf.NamespaceDefaults.Archival.Visibility.State = disabled
	return conf, hosts, nil
}

// tuning is the dynamic configuration: defaults are made for clusters with
// thousands of shards, and slow down one with a few. The values are bounds, not
// loads, so that they fit Postgres as well, where a step waits for its disk: what
// limits there is that each shard writes one transaction at a time, hence
// Config.Shards.
func tuning(cfg Config) dynamicconfig.StaticClient {
	const pendingBackoff = 200 * time.Millisecond
	values := dynamicconfig.StaticClient{
		// 20 polls a second and shard by default: each step of a workflow would
		// wait up to 50 ms.
		dynamicconfig.TransferProcessorMaxPollRPS.Key(): 200,
		dynamicconfig.TimerProcessorMaxPollRPS.Key():    200,
		// Where visibility falls behind, each further task costs a look at all that
		// are pending in memory: up to 10,000 by default. Beyond the critical number
		// they go to a second reader, which stops at 1,000; the rest up to the maximum
		// is left to what is new. So: 1,000 < critical < maximum. And with few of them
		// reading must go on soon, not after 5 s.
		dynamicconfig.QueuePendingTaskCriticalCount.Key():          1200,
		dynamicconfig.QueuePendingTaskMaxCount.Key():               1500,
		dynamicconfig.VisibilityProcessorPollBackoffInterval.Key(): pendingBackoff,
		dynamicconfig.TransferProcessorPollBackoffInterval.Key():   pendingBackoff,
		dynamicconfig.TimerProcessorPollBackoffInterval.Key():      pendingBackoff,
		// Four partitions spread few tasks thinly, so that pollers miss them.
		dynamicconfig.MatchingNumTaskqueueReadPartitions.Key():  1,
		dynamicconfig.MatchingNumTaskqueueWritePartitions.Key(): 1,
		// Without it fairness keys have no effect.
		dynamicconfig.MatchingEnableFairness.Key(): true,
		// One bulk operation at a time by default; the UI starts one per click.
		dynamicconfig.FrontendMaxConcurrentBatchOperationPerNamespace.Key(): 5,
		// Ten list or count calls a second by default, which the UI and the
		// bridge's reconciler share.
		dynamicconfig.FrontendMaxNamespaceVisibilityRPSPerInstance.Key(): 100,
	}
	if cfg.NamespaceRPS > 0 {
		values[dynamicconfig.FrontendMaxNamespaceRPSPerInstance.Key()] = cfg.NamespaceRPS
	}
	return values
}

func logger(file string) log.Logger {
	if file == "" {
		return log.NewNoopLogger()
	}
	return log.NewZapLogger(log.BuildZapLogger(log.Config{Level: "warn", OutputFile: file}))
}

// quiet drops what the SDK's client logs while the server is not up yet.
type quiet struct{}

var _ sdklog.Logger = quiet{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}
