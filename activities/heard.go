package activities

import (
	"context"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// DialOptions are the gRPC options that a client used by a worker of the role
// activities needs, for client.Options.ConnectionOptions. Without them an attempt
// one of whose heartbeats was lost on the way does not hear of a cancellation
// until its call ends: the SDK ends the activity's context with the first beat
// that cannot be delivered, and has no second way to tell.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(hear)}
}

type heardKey struct{}

// hearing returns a context whose heartbeats tell the channel the first thing
// the server says that ends the attempt: a cause as whyEnded knows it.
func hearing(ctx context.Context) (context.Context, <-chan error) {
	heard := make(chan error, 1)
	return context.WithValue(ctx, heardKey{}, heard), heard
}

func hear(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	heard, ok := ctx.Value(heardKey{}).(chan error)
	if !ok {
		return err
	}
	if beat, ok := reply.(*workflowservice.RecordActivityTaskHeartbeatResponse); ok {
		if why := answered(beat, err); whyEnded(why) != nil {
			select {
			case heard <- why:
			default: // the first one counts
			}
		}
	}
	return err
}

// answered is the cause with which the SDK ends an activity's context after such
// an answer to a heartbeat, or nil.
func answered(beat *workflowservice.RecordActivityTaskHeartbeatResponse, err error) error {
	switch {
	case err != nil:
		return serviceerror.FromStatus(status.Convert(err))
	case beat.GetCancelRequested():
		return temporal.NewCanceledError()
	case beat.GetActivityPaused():
		return activity.ErrActivityPaused
	case beat.GetActivityReset():
		return activity.ErrActivityReset
	default:
		return nil
	}
}
