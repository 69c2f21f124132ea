// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMAPROBE_RUN: many calls in one.
 */
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "private.h"

/*
 * No call is made yet. This also finds out whether the results can be written,
 * before there is one that could not.
 */
static int cancel_all(struct dmaprobe_run_op __user *ops, u32 nr)
{
	u32 i;

	for (i = 0; i < nr; i++)
		if (put_user(-ECANCELED, &ops[i].result))
			return -EFAULT;
	return 0;
}

static int run(struct dmaprobe_ucmd *ucmd, struct dmaprobe_run_op *ops)
{
	struct dmaprobe_run *cmd = ucmd->cmd;
	struct dmaprobe_run_op __user *uops = u64_to_user_ptr(cmd->ops);
	struct dmaprobe_run_state state = { .ops = ops };
	int ret = 0;

	while (state.nr < cmd->nr_ops && !dmaprobe_cancelled() &&
	       (!ret || (cmd->flags & DMAPROBE_RUN_CONTINUE))) {
		struct dmaprobe_run_op *op = &ops[state.nr];
		struct dmaprobe_ucmd call = {
			.session = ucmd->session,
			.ubuffer = u64_to_user_ptr(op->arg),
			.run = &state,
		};

		ret = dmaprobe_dispatch(&call, op->cmd);
		op->cmd = ret ? 0 : call.made;	/* for DMAPROBE_RUN_ID() */
		if (put_user(ret, &uops[state.nr++].result))
			return -EFAULT;
		cond_resched();
	}
	cmd->done = state.nr;
	return 0;
}

int dmaprobe_op_run(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_run *cmd = ucmd->cmd;
	struct dmaprobe_run_op *ops;
	int ret;

	if (ucmd->run || !cmd->nr_ops || cmd->nr_ops > DMAPROBE_RUN_MAX)
		return -EINVAL;
	/* Fail before doing anything if the results cannot be written. */
	ret = cancel_all(u64_to_user_ptr(cmd->ops), cmd->nr_ops);
	if (ret || put_user(0, &((struct dmaprobe_run __user *)ucmd->ubuffer)->done))
		return -EFAULT;
	ops = vmemdup_array_user(u64_to_user_ptr(cmd->ops), cmd->nr_ops, sizeof(*ops));
	if (IS_ERR(ops))
		return PTR_ERR(ops);
	ret = run(ucmd, ops);
	kvfree(ops);
	return ret;
}
