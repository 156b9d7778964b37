// Command temporal stands in for Temporal's command line tool in the image of
// the same name, where that image cannot be pulled. It knows what
// docker-compose.yml calls and refuses everything else, so that a misspelt flag
// is found; the server behind it is the development stack's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	enumspb "go.temporal.io/api/enums/v1"
	namespacepb "go.temporal.io/api/namespace/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/types/known/durationpb"
)

// The development stack's server listens on loopback only, hence other ports
// there and a relay in front of them.
const (
	innerPort   = 17233
	innerUIPort = 18233
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		os.Exit(1) //nolint:forbidigo,gocritic // this is main, and nothing is left to stop
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{Use: "temporal", SilenceUsage: true}
	root.AddCommand(
		group("server", newStartDev()),
		group("operator",
			group("cluster", newHealth()),
			group("namespace", newNamespaceUpdate()),
			group("search-attribute", newSearchAttributeCreate())),
	)
	return root
}

func group(name string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name}
	c.AddCommand(commands...)
	return c
}

type devServer struct {
	ip, database string
	uiPort       int
	tuning       []string
	pragmas      []string
}

func newStartDev() *cobra.Command {
	var s devServer
	cmd := &cobra.Command{
		Use:  "start-dev",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd.Context(), cmd.ErrOrStderr()) },
	}
	f := cmd.Flags()
	f.StringVar(&s.ip, "ip", "127.0.0.1", "")
	f.IntVar(&s.uiPort, "ui-port", 8233, "")
	f.StringVar(&s.database, "db-filename", "", "")
	f.StringArrayVar(&s.tuning, "dynamic-config-value", nil, "")
	f.StringArrayVar(&s.pragmas, "sqlite-pragma", nil, "")
	f.String("log-level", "", "")
	f.Bool("ui-disable-news-fetch", false, "")
	return cmd
}

// check reports what the real tool or its server would not understand. The
// development stack sets these values itself.
func (s devServer) check() error {
	known := []string{ // of Temporal's server, that the stack sets too
		"history.transferProcessorMaxPollRPS", "history.timerProcessorMaxPollRPS",
		"history.queuePendingTaskCriticalCount", "history.queuePendingTasksMaxCount",
		"history.visibilityProcessorPollBackoffInterval", "history.transferProcessorPollBackoffInterval", "history.timerProcessorPollBackoffInterval",
		"matching.numTaskqueueReadPartitions", "matching.numTaskqueueWritePartitions", "matching.enableFairness",
		"frontend.MaxConcurrentBatchOperationPerNamespace", "frontend.namespaceRPS.visibility",
	}
	for _, setting := range s.tuning {
		name, value, _ := strings.Cut(setting, "=")
		if !slices.Contains(known, name) || !json.Valid([]byte(value)) {
			return fmt.Errorf("--dynamic-config-value: %q is not known here", setting)
		}
	}
	for _, pragma := range s.pragmas {
		if !slices.Contains([]string{"journal_mode=wal", "synchronous=1"}, pragma) {
			return fmt.Errorf("--sqlite-pragma: %q is not what the stack uses", pragma)
		}
	}
	if filepath.Base(s.database) != "temporal.db" {
		return errors.New("--db-filename: the stack calls its file temporal.db")
	}
	return nil
}

func (s devServer) run(ctx context.Context, log io.Writer) error {
	if err := s.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for from, to := range map[int]int{7233: innerPort, s.uiPort: innerUIPort} {
		if err := relay(ctx, net.JoinHostPort(s.ip, strconv.Itoa(from)), to); err != nil {
			return err
		}
	}
	server := exec.CommandContext(ctx, "devstack", "temporal", //nolint:gosec // G204: a path the caller chose
		"--data", filepath.Dir(s.database),
		"--temporal-port", strconv.Itoa(innerPort), "--ui-port", strconv.Itoa(innerUIPort))
	server.Cancel = func() error { return server.Process.Signal(syscall.SIGTERM) }
	server.WaitDelay = 20 * time.Second
	server.Stdout, server.Stderr = log, log
	err := server.Run()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("the server ended by itself: %w", err)
}

// relay passes connections to address on to a port of loopback until ctx ends.
func relay(ctx context.Context, address string, port int) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	go func() {
		for {
			outer, err := listener.Accept()
			if err != nil {
				return
			}
			go pass(ctx, outer, port)
		}
	}()
	return nil
}

func pass(ctx context.Context, outer net.Conn, port int) {
	defer func() { _ = outer.Close() }()
	var dialer net.Dialer
	inner, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return
	}
	var both sync.WaitGroup
	// Whichever side ends first ends the other one.
	one := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		_ = to.Close()
		_ = from.Close()
	}
	both.Go(func() { one(inner, outer) })
	both.Go(func() { one(outer, inner) })
	both.Wait()
}

// connected runs do on a connection to the server that the flags or the
// environment name.
func connected(cmd *cobra.Command, do func(context.Context, client.Client) error) error {
	address, _ := cmd.Flags().GetString("address")
	ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
	defer cancel()
	c, err := client.DialContext(ctx, client.Options{HostPort: address})
	if err != nil {
		return err
	}
	defer c.Close()
	return do(ctx, c)
}

func withAddress(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.Flags().String("address", environment("TEMPORAL_ADDRESS", "127.0.0.1:7233"), "")
	return cmd
}

func withNamespace(cmd *cobra.Command, namespace *string) *cobra.Command {
	cmd.Flags().StringVar(namespace, "namespace", environment("TEMPORAL_NAMESPACE", "default"), "")
	return withAddress(cmd)
}

func environment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" { //nolint:forbidigo // as the tool it stands in for does
		return value
	}
	return otherwise
}

func newHealth() *cobra.Command {
	return withAddress(&cobra.Command{
		Use: "health",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return connected(cmd, func(ctx context.Context, c client.Client) error {
				_, err := c.CheckHealth(ctx, &client.CheckHealthRequest{})
				return err
			})
		},
	})
}

func newNamespaceUpdate() *cobra.Command {
	var (
		namespace string
		retention time.Duration
	)
	cmd := withNamespace(&cobra.Command{
		Use: "update",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return connected(cmd, func(ctx context.Context, c client.Client) error {
				_, err := c.WorkflowService().UpdateNamespace(ctx, &workflowservice.UpdateNamespaceRequest{
					Namespace: namespace,
					Config:    &namespacepb.NamespaceConfig{WorkflowExecutionRetentionTtl: durationpb.New(retention)},
				})
				return err
			})
		},
	}, &namespace)
	cmd.Flags().DurationVar(&retention, "retention", 0, "")
	return cmd
}

func newSearchAttributeCreate() *cobra.Command {
	var (
		namespace    string
		names, types []string
	)
	cmd := withNamespace(&cobra.Command{
		Use: "create",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(names) != len(types) {
				return errors.New("as many --type as --name")
			}
			attributes := map[string]enumspb.IndexedValueType{}
			for i, name := range names {
				kind, err := enumspb.IndexedValueTypeFromString(types[i])
				if err != nil {
					return err
				}
				attributes[name] = kind
			}
			return connected(cmd, func(ctx context.Context, c client.Client) error {
				_, err := c.OperatorService().AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
					Namespace: namespace, SearchAttributes: attributes,
				})
				return err
			})
		},
	}, &namespace)
	cmd.Flags().StringArrayVar(&names, "name", nil, "")
	cmd.Flags().StringArrayVar(&types, "type", nil, "")
	return cmd
}
