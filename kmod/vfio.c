// SPDX-License-Identifier: GPL-2.0-only
/*
 * The PCI driver: a VFIO variant driver that leaves DMA to the kernel. All that is
 * about who owns what of the device stands here.
 *
 * DMA: the kernel, from probe to remove. Unlike every other VFIO driver this one does
 * not set driver_managed_dma, so the PCI core takes the group for its default domain
 * before probe (which fails when VFIO owns the group already) and gives it back after
 * remove. A user who opens the VFIO device and binds it to an iommufd gets an emulated
 * access, which claims no group; attaching it to an IOAS is of no consequence to the
 * device's DMA. The legacy group attach is refused by the IOMMU core.
 *
 * BARs and bus mastering: nobody, or sessions that asked with DMAPROBE_ENABLE, or users of
 * VFIO, who reset the function. All functions that VFIO resets together go together.
 */
#include <linux/capability.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/vfio_pci_core.h>

#include "compat.h"
#include "private.h"

struct dmaprobe_vfio_device {
	struct vfio_pci_core_device core;
	struct dmaprobe_device *dd;
};

static const struct vfio_device_ops dmaprobe_vfio_ops;

static struct dmaprobe_device *to_dd(struct vfio_device *vdev)
{
	return container_of(vdev, struct dmaprobe_vfio_device, core.vdev)->dd;
}

#define QUIET_MS	200	/* without bus mastering, after a reset */

/* Who enabled which function. Not held during a reset. */
static DEFINE_MUTEX(registers_lock);

/* With the lock of the set held, by VFIO. */
static bool sessions_have(const struct vfio_device_set *set)
{
	const struct dmaprobe_device *dd;
	struct vfio_device *vdev;

	list_for_each_entry(vdev, &set->device_list, dev_set_list) {
		dd = vdev->ops == &dmaprobe_vfio_ops ? to_dd(vdev) : NULL;
		if (dd && (dd->enable_users || dd->resetting))
			return true;
	}
	return false;
}

/*
 * Whether VFIO has a function that it may reset with this one; or could have one at any
 * time, through another driver, which does not ask us.
 */
static bool vfio_has(const struct dmaprobe_device *dd)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&dd->pdev->dev);
	struct vfio_device_set *set = core->vdev.dev_set;
	struct vfio_device *vdev;
	bool ret;

	/* Opening, closing or resetting one. */
	if (!mutex_trylock(&set->lock))
		return true;
	ret = vfio_device_set_open_count(set);
	list_for_each_entry(vdev, &set->device_list, dev_set_list)
		ret |= vdev->ops != &dmaprobe_vfio_ops;
	mutex_unlock(&set->lock);
	return ret;
}

/*
 * Make sure that no DMA that another user has set up is left in the device: it would go on
 * with bus mastering, and could meet this user's mappings.
 */
static int reset_for_next_user(const struct dmaprobe_device *dd, struct pci_dev *pdev)
{
	struct pci_dev *bridge = pci_upstream_bridge(pdev);
	int ret = -EBUSY;

	/* As pci_reset_function(); but unbinding holds the function's lock as long as it likes. */
	if (bridge)
		pci_dev_lock(bridge);
	/* Under its lock the function stays ours. A reset puts the command register back. */
	if (pci_dev_trylock(pdev)) {
		if (!READ_ONCE(dd->unplugged)) {
			pci_clear_master(pdev);
			ret = pci_reset_function_locked(pdev);
		}
		pci_dev_unlock(pdev);
		ret = ret && !capable(CAP_SYS_RAWIO) ? -EPERM : 0;
	}
	if (bridge)
		pci_dev_unlock(bridge);
	/* What a reset leaves behind all the same ends without bus mastering. */
	if (!ret)
		msleep(QUIET_MS);
	return ret;
}

/* A device that reaches more than sessions map is for callers who may do that anyway. */
static bool may_master(const struct dmaprobe_device *dd, struct pci_dev *pdev)
{
	return (dd->confined && !dmaprobe_group_is_shared(&pdev->dev)) || capable(CAP_SYS_RAWIO);
}

static int registers_get(struct dmaprobe_session *s)
{
	struct dmaprobe_device *dd = s->dd;
	u16 cmd;

	if (!dd->enable_users) {
		/* A reset by sysfs that meets others who write the register undoes probe()'s. */
		pci_read_config_word(dd->pdev, PCI_COMMAND, &cmd);
		pci_write_config_word(dd->pdev, PCI_COMMAND,
				      cmd | PCI_COMMAND_MEMORY | PCI_COMMAND_INTX_DISABLE);
		pci_set_master(dd->pdev);
	}
	/* Of several users, any can have left something. */
	dd->used_by = dd->enable_users && !uid_eq(dd->used_by, s->uid) ? INVALID_UID : s->uid;
	dd->used = true;
	dd->enable_users++;
	s->enabled = true;
	return 0;
}

/* End the use of registers and bus mastering by a session. */
void dmaprobe_disable(struct dmaprobe_session *s)
{
	struct dmaprobe_device *dd = s->dd;

	guard(mutex)(&registers_lock);
	if (s->enabled && !--dd->enable_users)
		pci_clear_master(dd->pdev);
	s->enabled = false;
}

int dmaprobe_op_enable(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_enable *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_device *dd = s->dd;
	struct pci_dev *pdev;
	int ret;

	if (cmd->enable > 1)
		return -EINVAL;
	if (!cmd->enable) {
		dmaprobe_disable(s);
		return READ_ONCE(dd->unplugged) ? -ENODEV : 0;
	}
	scoped_guard(mutex, &registers_lock) {
		if (READ_ONCE(dd->unplugged))
			return -ENODEV;
		if (s->enabled)
			return 0;
		if (!may_master(dd, dd->pdev))
			return -EPERM;
		if (dd->resetting || vfio_has(dd))
			return -EBUSY;
		if (dd->enable_users || !dd->used || uid_eq(dd->used_by, s->uid))
			return registers_get(s);
		/* This keeps everybody else away meanwhile. */
		dd->resetting = true;
		pdev = pci_dev_get(dd->pdev);
	}
	ret = reset_for_next_user(dd, pdev);
	pci_dev_put(pdev);

	guard(mutex)(&registers_lock);
	dd->resetting = false;
	return READ_ONCE(dd->unplugged) ? -ENODEV : ret ?: registers_get(s);
}

static int dmaprobe_vfio_open_device(struct vfio_device *vdev)
{
	struct vfio_pci_core_device *core = container_of(vdev, struct vfio_pci_core_device, vdev);
	struct dmaprobe_device *dd = to_dd(vdev);
	int ret;

	if (!may_master(dd, core->pdev))
		return -EPERM;
	/* From here on VFIO counts it as open: see vfio_has(). */
	scoped_guard(mutex, &registers_lock) {
		if (sessions_have(vdev->dev_set))
			return -EBUSY;
		dd->used = true;
		dd->used_by = INVALID_UID;
	}
	ret = vfio_pci_core_enable(core);
	/* VFIO takes it for on, since it enables the device. What it finds, it restores. */
	pci_intx(core->pdev, !ret && !core->nointx);
	if (!ret)
		vfio_pci_core_finish_enable(core);
	return ret;
}

/* It is in no set any more, in which others look at what it leads to. */
static void dmaprobe_vfio_release(struct vfio_device *vdev)
{
	struct dmaprobe_device *dd = to_dd(vdev);

	if (dd)
		put_device(&dd->dev);
	vfio_pci_core_release_dev(vdev);
}

static const struct vfio_device_ops dmaprobe_vfio_ops = {
	.name = "dmaprobe",
	.init = vfio_pci_core_init_dev,
	.release = dmaprobe_vfio_release,
	.open_device = dmaprobe_vfio_open_device,
	.close_device = vfio_pci_core_close_device,
	.ioctl = vfio_pci_core_ioctl,
	DMAPROBE_VFIO_REGION_INFO_OPS
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = vfio_pci_core_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
	DMAPROBE_VFIO_MATCH_OPS
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
};

static int dmaprobe_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct dmaprobe_vfio_device *vdev;
	struct dmaprobe_device *dd;
	int ret;

	vdev = vfio_alloc_device(dmaprobe_vfio_device, core.vdev, &pdev->dev, &dmaprobe_vfio_ops);
	if (IS_ERR(vdev))
		return PTR_ERR(vdev);
	dd = dmaprobe_device_create(pdev);
	if (IS_ERR(dd)) {
		ret = PTR_ERR(dd);
		goto err_put;
	}

	vdev->dd = dd;
	dev_set_drvdata(&pdev->dev, &vdev->core);
	ret = pci_enable_device(pdev);
	if (ret)
		goto err_unplug;
	/* What others have left on; and each first enabling switches INTx on, which is nobody's. */
	pci_clear_master(pdev);
	pci_intx(pdev, 0);
	ret = vfio_pci_core_register_device(&vdev->core);
	if (ret) {
		pci_err(pdev, "cannot register with VFIO: %pe\n", ERR_PTR(ret));
		goto err_disable;
	}
	ret = cdev_device_add(&dd->cdev, &dd->dev);
	if (ret) {
		pci_err(pdev, "cannot add the character device: %pe\n", ERR_PTR(ret));
		goto err_unregister;
	}
	return 0;

err_unregister:
	vfio_pci_core_unregister_device(&vdev->core);
err_disable:
	pci_disable_device(pdev);
err_unplug:
	dmaprobe_device_unplug(dd);
err_put:
	vfio_put_device(&vdev->core.vdev);
	return ret;
}

/*
 * Sessions end at once. Who has the VFIO device open is asked to close it, and waited for,
 * as with every VFIO driver; DMA faults meanwhile.
 */
static void dmaprobe_remove(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);

	dmaprobe_device_unplug(to_dd(&core->vdev));
	vfio_pci_core_unregister_device(core);
	pci_disable_device(pdev);
	vfio_put_device(&core->vdev);
}

/* Any device, but only one whose driver_override names this driver. */
static const struct pci_device_id dmaprobe_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(PCI_ANY_ID, PCI_ANY_ID) },
	{}
};
MODULE_DEVICE_TABLE(pci, dmaprobe_ids);

static struct pci_driver dmaprobe_driver = {
	.name = "dmaprobe",
	.id_table = dmaprobe_ids,
	.probe = dmaprobe_probe,
	.remove = dmaprobe_remove,
	.err_handler = &vfio_pci_core_err_handlers,
};

int dmaprobe_vfio_register(void)
{
	return pci_register_driver(&dmaprobe_driver);
}

void dmaprobe_vfio_unregister(void)
{
	pci_unregister_driver(&dmaprobe_driver);
}
