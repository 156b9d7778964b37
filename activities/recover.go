package activities

import (
	"context"

	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
)

// Recover is a worker interceptor that turns a panic of any activity into a
// retryable error of type executor_panic. Without it the SDK would log the panic
// value and its stack, and either may hold content.
type Recover struct {
	interceptor.WorkerInterceptorBase
}

// InterceptActivity wraps regular and local activities.
func (*Recover) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &recovering{ActivityInboundInterceptorBase: interceptor.ActivityInboundInterceptorBase{Next: next}}
}

type recovering struct {
	interceptor.ActivityInboundInterceptorBase
}

func (r *recovering) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			result, err = nil, temporal.NewApplicationErrorWithOptions(errPanic.Error(), CodePanic, temporal.ApplicationErrorOptions{})
		}
	}()
	return r.Next.ExecuteActivity(ctx, in)
}
